"""A verifier that dies mid-stream: another goes on with the same text, and no position is lost or doubled."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from paceline.client import Chunk, Finished, GatewayClient, GatewayError, Generation, Started
from paceline.session import FinishReason
from paceline.store import RedisStore
from tests.pods import Pods
from tests.waiting import wait_until

MAX_TOKENS = 800


@pytest.fixture
def pods(tmp_path: Path, tiny_model: Path, redis_url: str) -> Iterator[Pods]:
    with Pods(tmp_path, tiny_model, redis_url, verifiers=2) as made:
        yield made.start()


def serving(pods: Pods) -> str | None:
    """The verifier that holds a session."""
    for address in pods.verifiers:
        if pods.pods[address].running and pods.verifier_status(address).sessions:
            return address
    return None


def healthy(pods: Pods) -> set[str]:
    """Verifiers that the gateway takes for healthy."""
    return {pod.address for pod in pods.gateways["gateway"].fleet().verifiers if pod.healthy}


@pytest.mark.parametrize("temperature", [0.0, 0.8])
async def test_the_stream_goes_on_at_the_other_verifier(pods: Pods, temperature: float) -> None:
    asked = Generation(text="the quick brown fox", max_tokens=MAX_TOKENS, temperature=temperature, seed=5)
    events: list[Started | Chunk | Finished] = []

    async with GatewayClient(pods.grpc) as client:
        undisturbed = [event async for event in client.generate(asked)]

        async def read() -> None:
            async for event in client.generate(asked, timeout_s=120):
                events.append(event)  # noqa: PERF401 (seen while it grows)

        reading = asyncio.create_task(read())
        await wait_until(lambda: reading.done() or len(events) > 30, "it streams")
        victim = serving(pods)
        assert victim is not None
        pods.pods[victim].kill()
        told = len(events)
        assert not reading.done()
        await reading

    chunks = [event for event in events if isinstance(event, Chunk)]
    expected = [event for event in undisturbed if isinstance(event, Chunk)]
    assert "".join(chunk.text for chunk in chunks) == "".join(chunk.text for chunk in expected)
    assert len(events) > told
    start = events[0]
    assert isinstance(start, Started)
    position = start.prompt_tokens
    for chunk in chunks:
        assert chunk.position == position
        position += len(chunk.token_ids)
    ids = [token for chunk in chunks for token in chunk.token_ids]
    assert ids == [token for chunk in expected for token in chunk.token_ids]
    last = events[-1]
    assert isinstance(last, Finished)
    assert last.reason is FinishReason.LENGTH
    assert sum(isinstance(event, Started) for event in events) == 1

    store = RedisStore(pods.redis_url, ttl_seconds=60)
    record = await store.get(start.session_id)
    await store.close()
    assert record is not None
    assert list(record.committed_ids) == ids
    assert record.key.epoch == 2
    assert record.finish_reason is FinishReason.LENGTH


async def test_eight_sessions_move_together(pods: Pods) -> None:
    asked = [
        Generation(text=f"hello world {at}", max_tokens=200, temperature=0.8, seed=at) for at in range(8)
    ]
    async with GatewayClient(pods.grpc) as client:
        counted = 0

        async def text(generation: Generation) -> str:
            nonlocal counted
            pieces = []
            async for event in client.generate(generation, timeout_s=120):
                if isinstance(event, Chunk):
                    counted += len(event.token_ids)
                    pieces.append(event.text)
            return "".join(pieces)

        alone = [await text(each) for each in asked]
        counted = 0
        reading = [asyncio.create_task(text(each)) for each in asked]
        await wait_until(lambda: counted > 80, "all of them stream")
        pods.pods[pods.verifiers[0]].kill()
        assert await asyncio.gather(*reading) == alone


@pytest.mark.long(reason="a session waits a minute for a verifier before its client is told")
async def test_without_any_verifier_the_client_is_told(pods: Pods) -> None:
    asked = Generation(text="hello world", max_tokens=MAX_TOKENS, temperature=0)
    async with GatewayClient(pods.grpc) as client:
        stream = client.generate(asked, timeout_s=120)
        assert isinstance(await anext(stream), Started)
        for address in pods.verifiers:
            pods.pods[address].kill()
        with pytest.raises(GatewayError, match=r"no verifier has room|cannot be moved") as caught:
            [event async for event in stream]
        assert caught.value.code.name == "UNAVAILABLE"


async def test_a_client_that_leaves_while_its_session_moves_ends_it(pods: Pods) -> None:
    """Even where the drafter takes long to let go: an orphan would fence out whoever goes on elsewhere."""
    asked = Generation(text="hello world", max_tokens=10_000, temperature=0)
    async with GatewayClient(pods.grpc, resume_s=0) as client:
        stream = client.generate(asked)
        start = await anext(stream)
        await wait_until(lambda: pods.drafter_status(pods.drafters[0]).sessions == 1, "it is drafted for")
        victim = serving(pods)
        assert victim is not None
        pods.pods[pods.drafters[0]].pause()
        pods.pods[victim].kill()
        await wait_until(
            lambda: victim not in healthy(pods), "the gateway has noticed, and waits for the drafter"
        )
        await stream.aclose()
    pods.pods[pods.drafters[0]].resume()
    await wait_until(lambda: not pods.gateways["gateway"].fleet().sessions, "the gateway lets it go")
    left = next(address for address in pods.verifiers if address != victim)
    await wait_until(lambda: not pods.verifier_status(left).sessions, "no verifier holds it")
    assert isinstance(start, Started)
    store = RedisStore(pods.redis_url, ttl_seconds=60)
    record = await store.get(start.session_id)
    await store.close()
    assert record is not None
    assert record.key.epoch == 1
