"""Redis's primary dies and a replica takes its place, with or without what was written last."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.pods import Pods
from tests.redis_servers import Watched, watched_redis
from tests.streams import Stream, serving

pytestmark = pytest.mark.long(reason="a Sentinel takes seconds to fail over, in each of six tests")


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[Watched]:
    with watched_redis(tmp_path) as made:
        yield made


@pytest.fixture(params=["relaxed", "strict"])
def durability(request: pytest.FixtureRequest) -> str:
    chosen: str = request.param
    return chosen


@pytest.fixture
def pods(durability: str, tmp_path: Path, tiny_model: Path, redis: Watched) -> Iterator[Pods]:
    with Pods(tmp_path, tiny_model, redis.url, verifiers=2, durability=durability) as made:
        yield made.start()


@pytest.mark.parametrize("behind", [False, True], ids=["in step", "behind"])
async def test_a_failover_loses_no_token_and_repeats_none(
    pods: Pods, redis: Watched, durability: str, behind: bool
) -> None:
    undisturbed = await Stream(pods).whole()
    streams = [Stream(pods) for _ in range(3)]
    for stream in streams:
        await stream.comes_to(100)
    if behind:
        redis.forget_to_replicate()
        for stream in list(streams):
            await stream.comes_to(len(stream.token_ids) + 100)
        # One that the replica has never heard of.
        streams.append(Stream(pods))
        await streams[-1].comes_to(50)
    await asyncio.to_thread(redis.fail_over)
    for stream in streams:
        assert await stream.whole() == undisturbed
        record = await stream.record_of_end()
        assert list(record.committed_ids) == undisturbed
        assert record.key.epoch == 1
        assert durability == "relaxed" or all(chunk.durable for chunk in stream.chunks)
    assert await Stream(pods).whole() == undisturbed


async def test_a_verifier_may_die_while_redis_fails_over(pods: Pods, redis: Watched) -> None:
    undisturbed = await Stream(pods).whole()
    stream = Stream(pods)
    await stream.comes_to(100)
    redis.forget_to_replicate()
    await stream.comes_to(200)
    redis.primary.pod.kill()
    serving(pods).kill()
    assert await stream.whole() == undisturbed
    record = await stream.record_of_end()
    assert list(record.committed_ids) == undisturbed
