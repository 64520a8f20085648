"""A verifier that hangs: its session moves, and once it wakes it can neither commit nor emit."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from paceline.client import Finished, Started
from tests.pods import Pods
from tests.streams import Stream, serving
from tests.waiting import wait_until


@pytest.fixture
def pods(tmp_path: Path, tiny_model: Path, redis_url: str) -> Iterator[Pods]:
    flags = ("--verifier-silence-seconds", "3")
    with Pods(tmp_path, tiny_model, redis_url, verifiers=2, gateway_flags=flags) as made:
        yield made.start()


async def test_the_session_moves_and_the_sleeper_is_fenced_out(pods: Pods) -> None:
    undisturbed = await Stream(pods).whole()
    stream = Stream(pods)
    await stream.comes_to(100)
    sleeper = serving(pods)
    sleeper.pause()
    here = len(stream.token_ids)
    await stream.comes_to(here + 200)
    sleeper.resume()
    assert await stream.whole() == undisturbed
    assert sum(isinstance(event, Started) for event in stream.events) == 1
    assert isinstance(stream.events[-1], Finished)
    await wait_until(
        lambda: all(pods.verifier_status(address).sessions == 0 for address in pods.verifiers),
        "nobody holds the session",
    )
    record = await stream.record()
    assert (record.key.epoch, list(record.committed_ids)) == (2, undisturbed)
    assert record.finish_reason is not None
