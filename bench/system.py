"""The whole system, started for one measurement and stopped after it."""

from __future__ import annotations

import asyncio
import shutil
import signal
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, TypeVar

from psutil import Process

from bench.dataset import Question
from paceline.client import ChatMessage, GatewayClient, GatewayError, Generation
from paceline.local import redis_server
from paceline.local.fleet import LocalFleet, ServiceState
from paceline.local.plan import Addresses, choose_addresses, plan_fleet
from paceline.local.process import Service, ServiceDiedError
from paceline.local.redis_server import RedisMissingError
from paceline.models.store import LocalModel

Measured = TypeVar("Measured")


class BenchError(Exception):
    """The run is no measurement; the message is for people."""


_KNOWN = (BenchError, GatewayError, RedisMissingError, ServiceDiedError)


class Progress(Protocol):
    """Told what comes next and how many parts of how many are done; only while nothing is measured."""

    def __call__(self, what: str, done: int = 0, of: int | None = None) -> None:
        """Show it. `of` None leaves the number of parts as it was."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What to run. `dtype` and `threads` hold for all arms."""

    model: LocalModel
    questions: Sequence[Question]
    max_tokens: int
    dtype: str
    threads: int
    redis_url: str | None
    logs: Path

    def generation(
        self, text: str, *, speculation: bool, temperature: float = 0.0, max_tokens: int | None = None
    ) -> Generation:
        """A request for the answer to `text`, as a chat where the model can chat; seed 0."""
        chat = self.model.can_chat
        return Generation(
            text=None if chat else text,
            chat=(ChatMessage("user", text),) if chat else (),
            max_tokens=max_tokens or self.max_tokens,
            temperature=temperature,
            seed=0,
            speculation=speculation,
        )


def run(measurement: Coroutine[Any, Any, Measured], plan: Plan) -> Measured:
    """Run a measurement to its end, SIGTERM being one. Raises `BenchError`."""

    async def stoppable() -> Measured:
        this = asyncio.current_task()
        assert this is not None
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, this.cancel)
        return await measurement

    plan.logs.mkdir(parents=True, exist_ok=True)
    try:
        return asyncio.run(stoppable())
    except asyncio.CancelledError:
        raise BenchError("stopped") from None
    except _KNOWN as error:
        raise BenchError(f"{error}\nlogs: {plan.logs}") from error
    except ExceptionGroup as group:
        known, others = group.split(_KNOWN)
        if known is None or others is not None:
            raise
        raise BenchError(f"{_first(known)}\nlogs: {plan.logs}") from group


@dataclass(frozen=True, slots=True)
class RunningSystem:
    """A fleet that serves, and a client of its gateway."""

    client: GatewayClient
    fleet: LocalFleet
    addresses: Addresses

    def processor_seconds(self) -> dict[str, float]:
        """Processor time that each service has taken since it started, by its name."""
        return {name: sum(Process(pid).cpu_times()[:2]) for name, pid in self.fleet.pids.items()}


@asynccontextmanager
async def system(
    plan: Plan,
    progress: Progress,
    *,
    variables: Mapping[str, str] | None = None,
    adjust: Callable[[Service], Service | None] = lambda service: service,
) -> AsyncIterator[RunningSystem]:
    """Redis, a verifier, a drafter and the gateway, running; stopped when the block is left.

    `variables`: of the environment, for all services beside our own. `adjust` may change what each service is
    started with, or leave it out by None.
    Raises `BenchError` when a service has ended meanwhile: without its drafter the system goes on, slower,
    and nothing else would tell.
    """
    progress("starting: paceline")
    async with AsyncExitStack() as stack:
        addresses = choose_addresses(http_port=0, grpc_port=0, verifiers=1, drafters=1)
        url, server = plan.redis_url, None
        if url is None:
            folder = redis_server.data_folder()
            stack.callback(shutil.rmtree, folder, ignore_errors=True)
            server = redis_server.private_server(redis_server.find_server(), folder)
            url = server.url
        waves = plan_fleet(plan.model, addresses, redis_url=url, redis=server)
        set_up = [
            [each for service in wave if (each := adjust(_set(service, plan, variables or {}))) is not None]
            for wave in waves
        ]
        fleet = LocalFleet(set_up, plan.logs, _quiet)
        stack.push_async_callback(fleet.stop)
        await fleet.start()
        started = fleet.pids
        client = await stack.enter_async_context(GatewayClient(addresses.grpc))
        yield RunningSystem(client, fleet, addresses)
        if ended := sorted(started.keys() - fleet.pids.keys()):
            raise BenchError(f"ended during the run: {', '.join(ended)}")


def _set(service: Service, plan: Plan, variables: Mapping[str, str]) -> Service:
    service = replace(service, variables={**service.variables, **variables})
    if not service.name.startswith("verifier"):
        return service
    # Every arm reads every prompt anew: the second to be asked must not find the first one's KV.
    flags = ("--dtype", plan.dtype, "--threads", str(plan.threads), "--prefix-cache", "false")
    return replace(service, command=(*service.command, *flags))


def _quiet(name: str, state: ServiceState, detail: str = "") -> None:
    pass


def _first(group: ExceptionGroup[Any]) -> Exception:
    """The first error in a group that is none itself."""
    error = group.exceptions[0]
    return _first(error) if isinstance(error, ExceptionGroup) else error
