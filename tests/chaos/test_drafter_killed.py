"""A drafter that dies, or comes late, changes a session's speed and never its text."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from paceline.client import Chunk, Finished, GatewayClient, Generation, Started
from tests.pods import Pods
from tests.waiting import wait_until

# A text that repeats itself, so that there is something to guess.
ASKED = Generation(text="the quick brown fox " * 8, max_tokens=800, temperature=0)
PLAIN = Generation(text=ASKED.text, max_tokens=800, temperature=0, speculation=False)


@pytest.fixture
def pods(tmp_path: Path, tiny_model: Path, redis_url: str) -> Iterator[Pods]:
    with Pods(tmp_path, tiny_model, redis_url) as made:
        yield made


class Reader:
    """One generation, read in the background."""

    def __init__(self, client: GatewayClient, asked: Generation) -> None:
        self.chunks: list[Chunk] = []
        self.finished: Finished | None = None
        self.session_id = ""
        self._client, self._asked = client, asked

    @property
    def text(self) -> str:
        return "".join(chunk.text for chunk in self.chunks)

    @property
    def ids(self) -> list[int]:
        return [token for chunk in self.chunks for token in chunk.token_ids]

    async def read(self) -> None:
        async for event in self._client.generate(self._asked, timeout_s=120):
            if isinstance(event, Started):
                self.session_id = event.session_id
            elif isinstance(event, Chunk):
                self.chunks.append(event)
            else:
                self.finished = event


async def test_a_session_outlives_its_drafter(pods: Pods) -> None:
    pods.start()
    async with GatewayClient(pods.grpc) as client:
        undisturbed = Reader(client, PLAIN)
        await undisturbed.read()
        reader = Reader(client, ASKED)
        reading = asyncio.create_task(reader.read())
        await wait_until(
            lambda: reading.done() or pods.verifier_status().drafted_tokens > 0, "the drafter drafts for it"
        )
        pods.pods[pods.drafter].kill()
        assert not reading.done()
        await wait_until(lambda: not pods.verifier_status().drafters, "the verifier notices")
        told = len(reader.ids)
        # The step in hand may have a tree yet.
        await wait_until(lambda: reading.done() or len(reader.ids) > told + 20, "it goes on")
        assert not reading.done()
        drafted = pods.verifier_status().drafted_tokens
        await reading
        assert len(reader.ids) > told
        assert reader.finished is not None
        assert (reader.ids, reader.text) == (undisturbed.ids, undisturbed.text)
        assert pods.verifier_status().drafted_tokens == drafted

        after = Reader(client, ASKED)
        await after.read()
        assert after.text == undisturbed.text


async def test_a_drafter_that_starts_late_is_attached_to_a_running_session(pods: Pods) -> None:
    pods.start(drafters=False)
    async with GatewayClient(pods.grpc) as client:
        undisturbed = Reader(client, PLAIN)
        await undisturbed.read()
        pods.launch_drafter(pods.drafter)
        # One session after the other until a drafter takes part in one that began without it.
        reader = Reader(client, ASKED)
        reading = asyncio.create_task(reader.read())
        for _ in range(40):
            await wait_until(
                lambda task=reading: task.done() or pods.verifier_status().drafted_tokens > 0,
                "the late drafter drafts",
            )
            await reading
            assert reader.text == undisturbed.text
            if pods.verifier_status().drafted_tokens:
                break
            reader = Reader(client, ASKED)
            reading = asyncio.create_task(reader.read())
        assert pods.verifier_status().drafted_tokens > 0


async def test_a_drafter_that_comes_back_drafts_again(pods: Pods) -> None:
    pods.start()
    async with GatewayClient(pods.grpc) as client:
        undisturbed = Reader(client, PLAIN)
        await undisturbed.read()
        pods.pods[pods.drafter].kill()
        await wait_until(lambda: not pods.verifier_status().drafters, "the verifier notices")
        pods.launch_drafter(pods.drafter)
        await wait_until(lambda: bool(pods.drafter_status().drafter_id), "it is back")
        before = pods.verifier_status().drafted_tokens
        reader = Reader(client, ASKED)
        await reader.read()
        assert reader.text == undisturbed.text
        again = Reader(client, ASKED)
        await again.read()
        assert again.text == undisturbed.text
        assert pods.verifier_status().drafted_tokens > before
