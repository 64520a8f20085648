"""A verifier that wakes after its session was handed over: it neither commits nor emits one token more."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from paceline.net import rpc, wire
from paceline.sampling import SamplingParams
from paceline.session import SessionKey
from paceline.store import Append, RedisStore, SessionRecord
from paceline.v1 import verifier_pb2, verifier_pb2_grpc
from tests.pods import MODEL, Pods
from tests.waiting import wait_until

PROMPT = (5, 6, 7)
SAMPLING = SamplingParams(max_tokens=4000)
# What the next owner commits: another text than this verifier would have, so that none of its tokens fits.
NEXT_OWNER = (3, 3, 3)


@pytest.fixture(params=["relaxed", "strict"])
def pods(request: pytest.FixtureRequest, tmp_path: Path, tiny_model: Path, redis_url: str) -> Iterator[Pods]:
    with Pods(tmp_path, tiny_model, redis_url, durability=request.param) as made:
        made.start_verifier(made.verifier)
        yield made


class Owner:
    """A gateway's call that holds a session open, and what it has heard."""

    def __init__(self, key: SessionKey, channel: grpc.aio.Channel) -> None:
        self.key = key
        self.ids: list[int] = []
        self._stub = verifier_pb2_grpc.VerifierServiceStub(channel)

    async def follow(self) -> None:
        request = verifier_pb2.OpenRequest(
            key=wire.key_to_proto(self.key), prompt_ids=PROMPT, sampling=wire.sampling_to_proto(SAMPLING)
        )
        async for response in self._stub.Open(request, timeout=120):
            self.ids += response.tokens.token_ids


async def test_a_verifier_that_wakes_after_the_hand_over_neither_commits_nor_emits(pods: Pods) -> None:
    store = RedisStore(pods.redis_url, ttl_seconds=60)
    key = SessionKey(secrets.token_hex(12), 1)
    await store.create(SessionRecord(key, MODEL, PROMPT, SAMPLING))
    async with rpc.channel(pods.verifier) as channel:
        owner = Owner(key, channel)
        following = asyncio.create_task(owner.follow())
        await wait_until(lambda: following.done() or len(owner.ids) > 50, "it streams")
        assert not following.done()
        sleeper = pods.pods[pods.verifier]
        sleeper.pause()
        later = SessionKey(key.session_id, 2)
        claimed = await store.claim(later)
        length = len(PROMPT) + len(claimed.committed_ids)
        assert await store.append([Append(later, length, NEXT_OWNER)]) == [None]
        handed_over = await store.get(key.session_id)
        sleeper.resume()
        with pytest.raises(grpc.aio.AioRpcError) as ended:
            await following
    assert ended.value.code() is grpc.StatusCode.ABORTED
    assert "does not own the session" in (ended.value.details() or "")
    # Commit before emit: what was on its way when it fell asleep, the next owner has, too.
    assert tuple(owner.ids) == claimed.committed_ids[: len(owner.ids)]
    assert handed_over is not None
    assert handed_over.committed_ids == (*claimed.committed_ids, *NEXT_OWNER)
    await wait_until(lambda: pods.verifier_status().sessions == 0, "it has dropped the session")
    assert await store.get(key.session_id) == handed_over
    await store.close()
