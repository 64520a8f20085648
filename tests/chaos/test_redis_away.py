"""Redis dies, stops answering or forgets: the text stays the same, and clients are told what is durable."""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from paceline.client import GatewayError
from paceline.local import redis_server
from tests.pods import Pod, Pods
from tests.streams import Stream, serving
from tests.waiting import wait_until


class Redis:
    """A private server that a test may kill, empty and start again."""

    def __init__(self, folder: Path) -> None:
        self._data = redis_server.data_folder()
        self._logs = folder
        self.server = redis_server.private_server(redis_server.find_server(), self._data)
        self.start()

    def start(self) -> None:
        self.pod = Pod("redis", self.server.command, self._logs)
        self.pod.until(lambda: asyncio.run(redis_server.answers(self.server.url)))

    def forget(self) -> None:
        shutil.rmtree(self._data / "appendonlydir")

    def close(self) -> None:
        self.pod.kill()
        shutil.rmtree(self._data, ignore_errors=True)


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[Redis]:
    made = Redis(tmp_path)
    yield made
    made.close()


@pytest.fixture(params=["relaxed"])
def pods(request: pytest.FixtureRequest, tmp_path: Path, tiny_model: Path, redis: Redis) -> Iterator[Pods]:
    with Pods(
        tmp_path,
        tiny_model,
        redis.server.url,
        verifiers=2,
        durability=request.param,
        gateway_flags=("--verifier-silence-seconds", "3"),
    ) as made:
        yield made.start()


@pytest.mark.parametrize("forgets", [False, True])
async def test_relaxed_a_dead_redis_stops_nobody(pods: Pods, redis: Redis, forgets: bool) -> None:
    undisturbed = await Stream(pods).whole()
    stream = Stream(pods)
    await stream.comes_to(100)
    assert all(chunk.durable for chunk in stream.chunks)
    redis.pod.kill()
    here = len(stream.token_ids)
    await stream.comes_to(here + 200)
    assert not stream.chunks[-1].durable
    if forgets:
        redis.forget()
    await asyncio.to_thread(redis.start)
    await wait_until(lambda: stream.chunks[-1].durable, "tokens are durable again")
    assert await stream.whole() == undisturbed
    record = await stream.record()
    assert list(record.committed_ids) == undisturbed
    assert record.finish_reason is not None


async def test_relaxed_a_redis_that_hangs_stops_nobody_for_long(pods: Pods, redis: Redis) -> None:
    undisturbed = await Stream(pods).whole()
    stream = Stream(pods)
    await stream.comes_to(100)
    redis.pod.pause()
    here = len(stream.token_ids)
    before = time.monotonic()
    await stream.comes_to(here + 100)
    # Until the first append has timed out.
    assert time.monotonic() - before < 10
    redis.pod.resume()
    assert await stream.whole() == undisturbed


async def test_relaxed_a_verifier_may_die_while_redis_is_away(pods: Pods, redis: Redis) -> None:
    undisturbed = await Stream(pods).whole()
    stream = Stream(pods)
    await stream.comes_to(100)
    redis.pod.kill()
    await stream.comes_to(250)
    serving(pods).kill()
    await stream.comes_to(500)
    redis.forget()
    await asyncio.to_thread(redis.start)
    assert await stream.whole() == undisturbed
    record = await stream.record()
    assert list(record.committed_ids) == undisturbed


async def test_a_redis_that_forgot_everything_is_told_again_when_a_verifier_dies(
    pods: Pods, redis: Redis
) -> None:
    undisturbed = await Stream(pods).whole()
    stream = Stream(pods)
    await stream.comes_to(100)
    victim = serving(pods)
    victim.pause()
    await asyncio.to_thread(redis.pod.kill)
    redis.forget()
    await asyncio.to_thread(redis.start)
    victim.kill()
    assert await stream.whole() == undisturbed
    record = await stream.record()
    assert list(record.committed_ids) == undisturbed
    assert record.key.epoch == 2


@pytest.mark.parametrize("pods", ["strict"], indirect=True)
async def test_strict_tokens_wait_for_redis(pods: Pods, redis: Redis) -> None:
    undisturbed = await Stream(pods).whole()
    stream = Stream(pods)
    await stream.comes_to(100)
    redis.pod.kill()
    await asyncio.sleep(0.5)
    here = len(stream.token_ids)
    # Longer than a verifier may be silent: it is not taken for hung.
    await asyncio.sleep(4)
    assert len(stream.token_ids) == here
    with pytest.raises(GatewayError, match="cannot be recorded") as caught:
        await Stream(pods).whole()
    assert caught.value.code.name == "UNAVAILABLE"
    await asyncio.to_thread(redis.start)
    assert await stream.whole() == undisturbed
    assert all(chunk.durable for chunk in stream.chunks)
    record = await stream.record()
    assert record.key.epoch == 1
