"""Decoding speed of the whole system on this machine, against itself without drafters and transformers.

All arms answer each prompt once, in one run, one decode at a time. The drafter's tables start empty but for
the warm-up prompt and learn from one prompt for the next, as in production; plain decoding never feeds them.
"""

from __future__ import annotations

import asyncio
import shutil
import signal
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from bench.arms import Arm, ArmFailed, PacelineArm, Sample, TransformersArm
from bench.dataset import Question
from paceline import local_redis
from paceline.client import GatewayClient, GatewayError
from paceline.local_fleet import LocalFleet, ServiceState
from paceline.local_plan import choose_addresses, plan_fleet
from paceline.local_process import Service, ServiceDied
from paceline.local_redis import RedisMissing
from paceline.model_store import LocalModel

TRANSFORMERS, PLAIN, SPECULATIVE = ARMS = ("transformers", "plain", "speculative")
# In no dataset, so that nothing of a measured prompt is known before it is asked.
WARM_UP = "List the days of the week, then list them again."
_WARM_UP_TOKENS = 24
# Longer than the threads of what ran before spin for new work.
_PAUSE_S = 0.2


class BenchFailed(Exception):
    """The run is no measurement; the message is for people."""


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


@dataclass(frozen=True, slots=True)
class Answered:
    """One question, the order in which the arms answered it, and what each said."""

    question: Question
    order: tuple[str, ...]
    samples: Mapping[str, Sample]


@dataclass(frozen=True, slots=True)
class Run:
    """All answers, and what the reference process says of its libraries and device."""

    answers: Sequence[Answered]
    about: Mapping[str, object]


def run(plan: Plan, progress: Callable[[str, int], None]) -> Run:
    """Start everything, measure, stop everything. Raises `BenchFailed`.

    `progress` gets what comes next and how many decodes are done; it is called between decodes only.
    """
    try:
        return asyncio.run(_run(plan, progress))
    except asyncio.CancelledError:
        raise BenchFailed("stopped") from None
    except (ArmFailed, GatewayError, RedisMissing, ServiceDied) as error:
        raise BenchFailed(f"{error}\nlogs: {plan.logs}") from error


async def measure(
    arms: Mapping[str, Arm],
    questions: Sequence[Question],
    max_tokens: int,
    progress: Callable[[str, int], None],
    *,
    pause_s: float = _PAUSE_S,
) -> list[Answered]:
    """Every arm once per question, one after another; who begins moves on from question to question."""
    names = list(arms)
    for name in names:
        progress(f"warming up: {name}", 0)
        await arms[name].answer(WARM_UP, min(_WARM_UP_TOKENS, max_tokens))
    answers: list[Answered] = []
    for number, question in enumerate(questions):
        first = number % len(names)
        order = (*names[first:], *names[:first])
        samples: dict[str, Sample] = {}
        for name in order:
            progress(f"{question.task}: {name}", number * len(names) + len(samples))
            await asyncio.sleep(pause_s)
            samples[name] = await arms[name].answer(question.text, max_tokens)
        answers.append(Answered(question, order, samples))
    progress("done", len(questions) * len(names))
    return answers


@asynccontextmanager
async def system(
    plan: Plan, progress: Callable[[str, int], None]
) -> AsyncIterator[tuple[TransformersArm, GatewayClient]]:
    """The whole system and the reference process, running; stopped when the block is left.

    Raises `BenchFailed` when a service has ended meanwhile: without its drafter the system goes on, slower,
    and nothing else would tell.
    """
    this = asyncio.current_task()
    assert this is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, this.cancel)
    plan.logs.mkdir(parents=True, exist_ok=True)
    async with AsyncExitStack() as stack:
        progress("starting: transformers", 0)
        # Before the verifier, which sizes its KV memory by what it finds free.
        log = stack.enter_context((plan.logs / "transformers.log").open("wb"))
        reference = await TransformersArm.start(plan.model, dtype=plan.dtype, threads=plan.threads, log=log)
        stack.push_async_callback(reference.stop)
        progress("starting: paceline", 0)
        addresses = choose_addresses(http_port=0, grpc_port=0, verifiers=1, drafters=1)
        url, server = plan.redis_url, None
        if url is None:
            folder = local_redis.data_folder()
            stack.callback(shutil.rmtree, folder, ignore_errors=True)
            server = local_redis.private_server(local_redis.find_server(), folder)
            url = server.url
        waves = plan_fleet(plan.model, addresses, redis_url=url, redis=server)
        fleet = LocalFleet([[_set(service, plan) for service in wave] for wave in waves], plan.logs, _quiet)
        stack.push_async_callback(fleet.stop)
        await fleet.start()
        started = fleet.pids
        yield reference, await stack.enter_async_context(GatewayClient(addresses.grpc))
        if ended := sorted(started.keys() - fleet.pids.keys()):
            raise BenchFailed(f"ended during the run: {', '.join(ended)}\nlogs: {plan.logs}")


async def _run(plan: Plan, progress: Callable[[str, int], None]) -> Run:
    chat = plan.model.can_chat
    async with system(plan, progress) as (reference, client):
        arms: dict[str, Arm] = {
            TRANSFORMERS: reference,
            PLAIN: PacelineArm(client, speculation=False, chat=chat),
            SPECULATIVE: PacelineArm(client, speculation=True, chat=chat),
        }
        return Run(await measure(arms, plan.questions, plan.max_tokens, progress), reference.about)


def _set(service: Service, plan: Plan) -> Service:
    if not service.name.startswith("verifier"):
        return service
    # Every arm reads every prompt anew: the second to be asked must not find the first one's KV.
    flags = ("--dtype", plan.dtype, "--threads", str(plan.threads), "--prefix-cache", "false")
    return replace(service, command=(*service.command, *flags))


def _quiet(name: str, state: ServiceState, detail: str = "") -> None:
    pass
