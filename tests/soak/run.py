"""Serve many clients of all kinds for long, and see that nothing grows: `make soak`."""

from __future__ import annotations

import asyncio
import json
import sys
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from tempfile import mkdtemp

import click
from rich.console import Console

from tests.pods import Pods
from tests.redis_servers import RedisServer
from tests.soak.clients import Clients
from tests.soak.report import Report
from tests.soak.watch import measures, watch
from tests.tiny import make_tiny_model
from tests.usage import redis_keys
from tests.waiting import wait_until

# Records of sessions expire, so that their number can become constant.
TTL_SECONDS = 20


async def soak(pods: Pods, *, minutes: float, concurrency: int, seed: int) -> Report:
    """Let clients loose on a running fleet."""
    idle_before = await asyncio.to_thread(measures, pods)
    clients = Clients(pods, concurrency=concurrency, seed=seed)
    samples = await watch(pods, minutes * 60)
    await clients.close()
    with suppress(AssertionError):
        await _quiet(pods, idle_before["redis"]["keys"])
    idle_after = await asyncio.to_thread(measures, pods)
    return Report(
        minutes,
        concurrency,
        dict(clients.served),
        clients.tokens,
        clients.wrong,
        idle_before,
        idle_after,
        samples,
    )


async def _quiet(pods: Pods, keys: float) -> None:
    """Return when nothing of the clients should be left; what is, is in the report."""
    await wait_until(lambda: not pods.verifier_status().sessions, "the verifier has no session")
    await wait_until(lambda: not pods.drafter_status().sessions, "the drafter has no session")
    await wait_until(lambda: redis_keys(pods.redis_url) <= keys, "all records have expired", 3 * TTL_SECONDS)


@click.command(help=__doc__)
@click.option("--minutes", default=20.0, show_default=True)
@click.option("--concurrency", default=16, show_default=True, help="Clients in closed loop.")
@click.option("--seed", default=0, show_default=True, help="Draws who asks what, and how.")
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Write all samples there, too.")
@click.option("--folder", type=click.Path(path_type=Path), help="Takes logs and the model.")
def main(minutes: float, concurrency: int, seed: int, json_path: Path | None, folder: Path | None) -> None:
    console = Console(width=140)
    folder = folder or Path(mkdtemp(prefix="paceline-soak-"))
    folder.mkdir(parents=True, exist_ok=True)
    console.print(f"logs in {folder}")
    with (
        RedisServer("redis", folder) as redis,
        fleet(folder, make_tiny_model(folder / "model"), redis.url) as pods,
    ):
        report = asyncio.run(soak(pods.start(), minutes=minutes, concurrency=concurrency, seed=seed))
    report.show(console)
    if json_path is not None:
        json_path.write_text(
            json.dumps({**asdict(report), "trends": report.trends}, indent=1, default=asdict)
        )
    sys.exit(bool(report.wrong or report.left or report.grown))


def fleet(folder: Path, model: Path, redis_url: str) -> Pods:
    """One of each, with KV so small that it is soon all in use: a prefix cache keeps what it can."""
    expiring = ("--session-ttl-seconds", str(TTL_SECONDS))
    flags = (*expiring, "--kv-tokens", "16384")
    return Pods(
        folder,
        model,
        redis_url,
        verifier_flags=flags,
        gateway_flags=expiring,
        metrics=True,
        verifier_threads=2,
    )


if __name__ == "__main__":
    main()
