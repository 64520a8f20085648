"""A session has one drafter: the one before is told when another joins, and keeps nothing of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from paceline.net import wire
from paceline.v1 import drafter_pb2, drafter_pb2_grpc
from tests.pods import Pods
from tests.streams import Stream
from tests.waiting import wait_until


@pytest.fixture
def pods(tmp_path: Path, tiny_model: Path, redis_url: str) -> Iterator[Pods]:
    with Pods(tmp_path, tiny_model, redis_url, drafters=2) as made:
        yield made.start()


async def test_the_drafter_before_forgets_the_session(pods: Pods) -> None:
    def sessions() -> dict[str, int]:
        return {address: pods.drafter_status(address).sessions for address in pods.drafters}

    stream = Stream(pods)
    await stream.comes_to(10)
    await wait_until(lambda: sum(sessions().values()) == 1, "it is drafted for")
    (before,) = [address for address, held in sessions().items() if held]
    (other,) = [address for address in pods.drafters if address != before]
    record = await stream.record()
    async with grpc.aio.insecure_channel(other) as channel:
        await drafter_pb2_grpc.DrafterServiceStub(channel).Attach(
            drafter_pb2.AttachRequest(
                key=wire.key_to_proto(record.key),
                verifier_address=pods.verifier,
                known_ids=[*record.prompt_ids, *record.committed_ids],
                sampling=wire.sampling_to_proto(record.sampling),
            )
        )
    await wait_until(lambda: sessions() == {before: 0, other: 1}, "only the other holds it")
    drafted = pods.drafter_status(other).drafted_tokens
    await wait_until(lambda: pods.drafter_status(other).drafted_tokens > drafted, "the other drafts for it")
    assert len(await stream.whole()) == 1500
    await wait_until(lambda: sessions() == {before: 0, other: 0}, "nobody holds it")
