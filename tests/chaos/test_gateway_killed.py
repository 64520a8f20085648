"""A gateway that dies takes no session with it: clients go on at another one, each token once."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from paceline.client import Chunk, Finished, GatewayClient, GatewayError, Generation, SyncGatewayClient
from tests.pods import Gateway, Pods
from tests.waiting import wait_until

PROMPT = "the quick brown fox"
ASKED = [
    Generation(text=f"{PROMPT} {index}", max_tokens=700, temperature=0.8 * (index % 2), seed=index)
    for index in range(4)
]


@pytest.fixture
def pods(tmp_path: Path, tiny_model: Path, redis_url: str) -> Iterator[Pods]:
    with Pods(tmp_path, tiny_model, redis_url) as made:
        yield made.start()


@pytest.fixture
def second(pods: Pods) -> Gateway:
    return pods.start_gateway("second gateway")


class Reader:
    """One client's stream."""

    def __init__(self, addresses: str, asked: Generation) -> None:
        self.chunks: list[Chunk] = []
        self.finished: Finished | None = None
        self._addresses, self._asked = addresses, asked

    @property
    def ids(self) -> list[int]:
        return [token for chunk in self.chunks for token in chunk.token_ids]

    @property
    def text(self) -> str:
        return "".join(chunk.text for chunk in self.chunks)

    def take(self, event: object) -> None:
        if isinstance(event, Chunk):
            if self.chunks:
                last = self.chunks[-1]
                assert event.position == last.position + len(last.token_ids)
            self.chunks.append(event)
        elif isinstance(event, Finished):
            self.finished = event

    async def read(self) -> None:
        async with GatewayClient(self._addresses) as client:
            async for event in client.generate(self._asked, timeout_s=120):
                self.take(event)

    def read_blocking(self) -> None:
        with SyncGatewayClient(self._addresses) as client:
            for event in client.generate(self._asked, timeout_s=120):
                self.take(event)


@pytest.mark.parametrize("blocking", [False, True], ids=["async client", "blocking client"])
async def test_sessions_outlive_their_gateway(blocking: bool, pods: Pods, second: Gateway) -> None:
    expected = [Reader(second.grpc, asked) for asked in ASKED]
    await asyncio.gather(*(reader.read() for reader in expected))
    readers = [Reader(f"{pods.grpc},{second.grpc}", asked) for asked in ASKED]
    async with asyncio.TaskGroup() as tasks:
        reading = [
            tasks.create_task(asyncio.to_thread(reader.read_blocking) if blocking else reader.read())
            for reader in readers
        ]
        await wait_until(lambda: all(len(reader.ids) > 20 for reader in readers), "all of them stream")
        pods.pods["gateway"].kill()
        assert not any(task.done() for task in reading)
    for reader, undisturbed in zip(readers, expected, strict=True):
        assert reader.ids == undisturbed.ids
        assert reader.text == undisturbed.text
        assert reader.finished is not None
        assert undisturbed.finished is not None
        assert reader.finished.reason is undisturbed.finished.reason


async def test_streams_of_a_gateway_that_hangs_go_on_at_the_other(pods: Pods, second: Gateway) -> None:
    undisturbed = Reader(second.grpc, ASKED[0])
    await undisturbed.read()
    reader = Reader(f"{pods.grpc},{second.grpc}", ASKED[0])
    reading = asyncio.create_task(reader.read())
    await wait_until(lambda: len(reader.ids) > 20, "it streams")
    pods.pods["gateway"].pause()
    # Its connection stays open: only silence tells.
    async with asyncio.timeout(60):
        await reading
    assert reader.ids == undisturbed.ids
    assert reader.text == undisturbed.text


async def test_every_stream_of_one_client_finds_the_gateway_that_is_up(pods: Pods) -> None:
    async with GatewayClient(f"127.0.0.1:1,{pods.grpc}") as client:

        async def read(asked: Generation) -> Finished:
            *_, last = [event async for event in client.generate(asked, timeout_s=120)]
            assert isinstance(last, Finished)
            return last

        for finished in await asyncio.gather(*(read(asked) for asked in ASKED)):
            assert finished.receipt.committed_tokens


async def test_a_request_whose_gateway_dies_before_it_begins_is_asked_of_the_other(
    pods: Pods, second: Gateway
) -> None:
    undisturbed = Reader(second.grpc, ASKED[0])
    await undisturbed.read()
    deaf = pods.pods["gateway"]
    deaf.pause()
    reader = Reader(f"{pods.grpc},{second.grpc}", ASKED[0])
    reading = asyncio.create_task(reader.read())
    # Whatever of the request it has got by now, it does not answer.
    await asyncio.sleep(0.2)
    deaf.kill()
    await reading
    assert reader.text == undisturbed.text


async def test_a_session_whose_gateway_and_client_are_gone_ends(pods: Pods) -> None:
    reader = Reader(pods.grpc, Generation(text=PROMPT, max_tokens=8000, temperature=0.8, seed=1))
    reading = asyncio.create_task(reader.read())
    await wait_until(lambda: len(reader.ids) > 20, "it streams")
    pods.pods["gateway"].kill()
    await wait_until(lambda: not pods.verifier_status().sessions, "the verifier lets it go")
    await wait_until(lambda: not pods.drafter_status().sessions, "the drafter lets it go")
    assert not reading.done(), "with one gateway only it waits for that one"
    reading.cancel()


async def test_a_client_that_does_not_resume_is_told(pods: Pods) -> None:
    async with GatewayClient(pods.grpc, resume_s=0) as client:
        stream = client.generate(Generation(text=PROMPT, max_tokens=8000, temperature=0.8, seed=1))
        for _ in range(5):
            await anext(stream)
        pods.pods["gateway"].kill()
        with pytest.raises(GatewayError):
            async for _ in stream:
                pass
