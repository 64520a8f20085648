"""A verifier that has nothing left to do stops, however long its grace, also when its engine has failed."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from paceline.client import Chunk, GatewayClient, Generation
from tests.pods import Pods
from tests.streams import ASKED as LONG
from tests.streams import Stream
from tests.waiting import wait_until

GRACE_SECONDS = 600
ASKED = Generation(text="the quick brown fox", max_tokens=800, temperature=0)


@pytest.fixture
def failing(
    tmp_path: Path, tiny_model: Path, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Pods]:
    """One verifier whose engine fails when the file `fails` is there, and a drafter."""
    monkeypatch.setenv("ENGINE_FAILS", str(tmp_path / "fails"))
    flags = ("--grace-seconds", str(GRACE_SECONDS))
    with Pods(tmp_path, tiny_model, redis_url, verifier_flags=flags) as made:
        made.verifier_module = "tests.failing_verifier"
        yield made.start()


async def told(pods: Pods, asked: Generation) -> list[int]:
    """The ids of one answer."""
    async with GatewayClient(pods.grpc) as client:
        events = [event async for event in client.generate(asked, timeout_s=120)]
    return [token for event in events if isinstance(event, Chunk) for token in event.token_ids]


async def test_an_engine_that_fails_ends_its_verifier_and_the_session_goes_on_at_the_next(
    failing: Pods, tmp_path: Path
) -> None:
    undisturbed = await told(failing, ASKED)
    verifier = failing.pods[failing.verifier]
    reading = asyncio.create_task(told(failing, ASKED))
    await wait_until(lambda: failing.verifier_status().sessions == 1, "it streams")
    assert failing.verifier_status().drafters
    (tmp_path / "fails").touch()
    await wait_until(lambda: not verifier.running, "the verifier has ended")
    assert verifier.exit_code == 1
    assert not reading.done()
    (tmp_path / "fails").unlink()
    failing.launch(failing.verifier)
    assert await reading == undisturbed


async def test_a_verifier_without_sessions_does_not_wait_for_its_drafters(failing: Pods) -> None:
    await told(failing, ASKED)
    assert failing.verifier_status().drafters
    verifier = failing.pods[failing.verifier]
    verifier.terminate()
    await wait_until(lambda: not verifier.running, "the verifier has ended")
    assert verifier.exit_code == 0


async def test_a_session_has_its_grace(failing: Pods) -> None:
    undisturbed = await told(failing, ASKED)
    verifier = failing.pods[failing.verifier]
    reading = asyncio.create_task(told(failing, ASKED))
    await wait_until(lambda: failing.verifier_status().sessions == 1, "it streams")
    verifier.terminate()
    assert await reading == undisturbed
    await wait_until(lambda: not verifier.running, "the verifier has ended")
    assert verifier.exit_code == 0


async def test_a_verifier_without_a_store_stops_at_once(tmp_path: Path, tiny_model: Path) -> None:
    flags = ("--grace-seconds", str(GRACE_SECONDS))
    with Pods(tmp_path, tiny_model, "", verifier_flags=flags) as pods:
        pods.start()
        await told(pods, ASKED)
        verifier = pods.pods[pods.verifier]
        verifier.terminate()
        await wait_until(lambda: not verifier.running, "the verifier has ended")
        assert verifier.exit_code == 0


async def test_its_sessions_move_at_once_where_another_verifier_has_places(
    tmp_path: Path, tiny_model: Path, redis_url: str
) -> None:
    flags = ("--grace-seconds", str(GRACE_SECONDS))
    with Pods(tmp_path, tiny_model, redis_url, verifiers=2, verifier_flags=flags) as pods:
        pods.start()
        streams = [Stream(pods, replace(LONG, seed=seed, max_tokens=800)) for seed in range(2)]
        for stream in streams:
            await stream.comes_to(5)
        first, second = pods.verifiers
        assert pods.verifier_status(first).sessions == pods.verifier_status(second).sessions == 1
        pods.pods[first].terminate()
        await wait_until(lambda: not pods.pods[first].running, "the verifier has ended")
        told = [await stream.whole() for stream in streams]
        again = [await Stream(pods, stream.asked).whole() for stream in streams]
        assert told == again
        log = (tmp_path / "gateway.log").read_text()
        assert log.count("verifier is being stopped, moving the session") == 1
        assert "verifier lost" not in log
