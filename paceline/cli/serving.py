"""The life of one `paceline up`: start, demonstrate, keep serving, stop everything."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rich.text import Text

from paceline.addresses import is_loopback
from paceline.cli import demo
from paceline.cli.board import Board
from paceline.cli.console import DRAFTED, err, out, stream
from paceline.cli.gateway import DEFAULT_GATEWAY
from paceline.client import GatewayClient, GatewayError
from paceline.local import redis_server
from paceline.local.fleet import LocalFleet
from paceline.local.plan import DEFAULT_DRAFTING, Addresses, Drafting, plan_fleet
from paceline.local.process import ServiceDiedError
from paceline.local.redis_server import LocalRedis, RedisMissingError
from paceline.models.store import LocalModel
from paceline.service.settings import SettingsError

_KEPT_LOGS = 10
_STOPPED = 128  # exit status of a process ended by signal n is 128 + n, by convention


class UpError(Exception):
    """The fleet could not start or could not go on; the message is for people."""


@dataclass(frozen=True, slots=True)
class UpOptions:
    """What `paceline up` was asked for. `logs` is the folder that gets a folder per run."""

    model: LocalModel
    addresses: Addresses
    redis_url: str | None
    logs: Path
    once: bool
    demonstrate: bool = True
    drafting: Drafting = DEFAULT_DRAFTING


def serve(options: UpOptions) -> int:
    """Run the fleet until a signal or, with `once`, the demonstration's end; the exit status.

    Raises `UpError`.
    """
    with _redis(options.redis_url) as (url, server):
        return asyncio.run(_serve(options, url, server))


async def _serve(options: UpOptions, redis_url: str, server: LocalRedis | None) -> int:
    if server is None and not await _reachable(redis_url):
        raise UpError("the Redis that REDIS_URL or --redis-url names does not answer: start it, or unset it")
    waves = plan_fleet(
        options.model, options.addresses, redis_url=redis_url, redis=server, drafting=options.drafting
    )
    logs = _log_folder(options.logs)
    err.print(f"[bold]{options.model.name}[/bold]; logs in {logs}")
    board = Board([service.name for wave in waves for service in wave])
    fleet = LocalFleet(waves, logs, board.change)
    received: list[signal.Signals] = []
    serving = asyncio.Event()
    work = asyncio.ensure_future(_work(options, fleet, board, serving))
    with _signals(work, received, fleet):
        try:
            return await work
        except asyncio.CancelledError:
            # Ctrl-C is how serving is meant to end.
            if received == [signal.SIGINT] and serving.is_set():
                return 0
            if not serving.is_set():
                err.print("interrupted before it served")
            return _STOPPED + received[0] if received else 1
        except ServiceDiedError as error:
            raise UpError(str(error)) from error
        except (GatewayError, demo.DemoError) as error:
            raise UpError(f"the demonstration failed: {error}\nlogs: {logs}") from error
        finally:
            with err.status("stopping every process"):
                await fleet.stop()
            err.print("stopped")


async def _work(options: UpOptions, fleet: LocalFleet, board: Board, serving: asyncio.Event) -> int:
    with board.live():
        await fleet.start()
    keeping = asyncio.ensure_future(fleet.keep())
    showing = asyncio.ensure_future(_demonstrate(options) if options.demonstrate else asyncio.sleep(0, 0))
    try:
        # A service that keeps dying ends the demonstration too.
        await asyncio.wait({keeping, showing}, return_when=asyncio.FIRST_COMPLETED)
        if not showing.done():
            await keeping
        status = await showing
        if options.once:
            return status
        _invite(options)
        serving.set()
        await keeping
        return status
    finally:
        for task in (keeping, showing):
            task.cancel()
        await asyncio.gather(keeping, showing, return_exceptions=True)


async def _demonstrate(options: UpOptions) -> int:
    async with GatewayClient(options.addresses.grpc) as client:
        with err.status("warming up"):
            await demo.warm_up(client)
        out.print(Text.assemble(("\nprompt  ", "bold"), (demo.PROMPT, "dim"), "\n"))
        speculative = await demo.speculative(client, stream, chat=options.model.can_chat)
        out.print("\n")
        # No spinner: it would take time from what is measured.
        err.print("[dim]measuring the same prompt without speculation ...[/dim]")
        plain = await demo.plain(client, chat=options.model.can_chat)
    return _report(demo.Comparison(speculative, plain))


def _report(comparison: demo.Comparison) -> int:
    fast, plain = comparison.speculative, comparison.plain
    count = len(fast.token_ids)
    if out.is_terminal:
        out.print(f"[{DRAFTED}]this colour[/{DRAFTED}]: guessed by a drafter, then verified\n")
    rows = [
        (
            "with speculation",
            f"{fast.tokens_per_second:.1f} tokens/s",
            f"{count} tokens in {fast.seconds:.2f} s",
        ),
        ("plain decoding", f"{plain.tokens_per_second:.1f} tokens/s", "same prompt, the faster of 2 runs"),
        ("speed-up", f"{comparison.speed_up:.2f} x", "time of the whole request, prompt included"),
        (
            "acceptance length",
            f"{fast.receipt.acceptance_length:.2f} tokens/step",
            f"{fast.receipt.accepted_tokens} of {count} tokens were drafted",
        ),
    ]
    for name, value, detail in rows:
        out.print(Text.assemble(f"{name:<18}", (f"{value:>17}", "bold"), (f"   {detail}", "dim")))
    out.print(
        Text(
            "An answer that reuses its question's words suits speculation; `paceline bench` measures others.",
            "dim",
        )
    )
    if comparison.identical:
        out.print("text identical: [bold]yes[/bold]\n")
        return 0
    out.print(f"text identical: [bold red]no[/bold red], from token {comparison.first_difference()} on\n")
    return 1


def _invite(options: UpOptions) -> None:
    url, grpc = options.addresses.url, options.addresses.grpc
    out.print(
        f"serving on [bold]{url}[/bold] (OpenAI's API) and {grpc} (gRPC); Ctrl-C stops everything. Try:"
    )
    if not is_loopback(options.addresses.host):
        err.print(
            f"anybody who reaches {options.addresses.host} may use it: no API keys, no TLS", style="yellow"
        )
    out.print(Text("\n" + demo.curl(url, options.model.name, chat=options.model.can_chat) + "\n"))
    where = "" if grpc == DEFAULT_GATEWAY else f" --gateway {grpc}"
    out.print(Text(f'  paceline generate "{demo.QUESTION}"{where}\n  paceline status{where}\n'))


async def _reachable(url: str) -> bool:
    try:
        return await redis_server.answers(url)
    except SettingsError as error:
        raise UpError(str(error)) from error


@contextmanager
def _redis(url: str | None) -> Iterator[tuple[str, LocalRedis | None]]:
    """The URL to use and, when none is given, the private server to start; its data goes at the end."""
    if url is not None:
        yield url, None
        return
    try:
        binary = redis_server.find_server()
    except RedisMissingError as error:
        raise UpError(str(error)) from error
    folder = redis_server.data_folder()
    try:
        server = redis_server.private_server(binary, folder)
        yield server.url, server
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _signals(work: asyncio.Future[int], received: list[signal.Signals], fleet: LocalFleet) -> Iterator[None]:
    """The first signal ends `work`, so that everything is stopped in order; a second one kills at once."""

    def handle(number: signal.Signals) -> None:
        received.append(number)
        work.cancel()
        if len(received) > 1:
            fleet.kill()

    event_loop = asyncio.get_running_loop()
    # What is ignored stays so: nohup ignores SIGHUP.
    caught = [
        number
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        if number is signal.SIGINT or signal.getsignal(number) is not signal.SIG_IGN
    ]
    for number in caught:
        event_loop.add_signal_handler(number, handle, number)
    try:
        yield
    finally:
        for number in caught:
            event_loop.remove_signal_handler(number)


def _log_folder(parent: Path) -> Path:
    """A new folder for this run's logs; the oldest ones of earlier runs go."""
    folder = parent / f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
    folder.mkdir(parents=True)
    for old in sorted(parent.iterdir())[:-_KEPT_LOGS]:
        shutil.rmtree(old, ignore_errors=True)
    return folder
