"""A drafter's flood, under the name of an honest one, costs it its stream and nobody else anything."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from pathlib import Path
from urllib.request import urlopen

import pytest

from paceline.client import Chunk, Finished, GatewayClient, Generation
from paceline.net import rpc
from tests.flooder import Flooder
from tests.pods import Pods
from tests.waiting import wait_until

pytestmark = pytest.mark.serial

NAME = "d1"
ASKED = [
    Generation(text=text * 8, max_tokens=600, temperature=0)
    for text in ("the quick brown fox ", "to be or not to be ", "a rose is a rose ")
]


@pytest.fixture
def pods(tmp_path: Path, tiny_model: Path, redis_url: str) -> Iterator[Pods]:
    flags = ("--drafter-id", NAME)
    with Pods(
        tmp_path,
        tiny_model,
        redis_url,
        drafter_flags=flags,
        verifier_threads=2,
        metrics=True,
        default_settings=True,
    ) as made:
        yield made.start()


async def texts(pods: Pods) -> tuple[list[list[int]], list[Finished]]:
    """Of all that is asked, at once; and how each ended."""

    async def one(client: GatewayClient, asked: Generation) -> tuple[list[int], Finished]:
        events = [event async for event in client.generate(asked, timeout_s=120)]
        assert isinstance(events[-1], Finished)
        return [token for each in events if isinstance(each, Chunk) for token in each.token_ids], events[-1]

    async with GatewayClient(pods.grpc) as client:
        ended = await asyncio.gather(*(one(client, asked) for asked in ASKED))
    return [ids for ids, _ in ended], [finished for _, finished in ended]


def metrics(pods: Pods) -> str:
    """What the verifier tells Prometheus."""
    with urlopen(f"http://127.0.0.1:{pods.metrics_ports[pods.verifier]}/metrics", timeout=10) as page:
        told: str = page.read().decode()
    return told


def accepted(ended: list[Finished]) -> int:
    """Tokens that the honest drafter has guessed."""
    return sum(each.receipt.accepted_tokens for each in ended)


async def test_a_flood_costs_nobody_but_the_one_who_floods(pods: Pods) -> None:
    # What was answered before is drafted better.
    undisturbed, _ = await texts(pods)
    _, before = await texts(pods)
    assert accepted(before)
    flooders = [Flooder(lambda: rpc.channel(pods.verifier), NAME) for _ in range(3)]
    flooding = [asyncio.create_task(flooder.run()) for flooder in flooders]
    try:
        await wait_until(lambda: all(flooder.ended for flooder in flooders), "all are sent away")
        disturbed, during = await texts(pods)
    finally:
        for task in flooding:
            task.cancel()
        await asyncio.wait(flooding)
    assert disturbed == undisturbed
    # How many nodes are worth their rows depends on what the machine does besides.
    assert accepted(during) > accepted(before) / 4
    status = pods.verifier_status()
    # By what they are known by; the name is the honest one's too, which has kept its stream.
    assert status.drafters_aside
    assert all(told.startswith(f"{NAME} (ip") for told in status.drafters_aside)
    assert NAME in status.drafters
    assert "verifier lost" not in pods.pods[pods.drafter].log.read_text()
    page = await asyncio.to_thread(metrics, pods)
    assert re.search(r'paceline:drafters_put_aside_total{[^}]*reason="flood"', page)
    log = pods.pods[pods.verifier].log.read_text()
    assert "[error" not in log
    assert len(log.splitlines()) < 200
