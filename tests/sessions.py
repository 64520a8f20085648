"""Sessions that a test opens at a verifier itself, in the place of a gateway."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial

import grpc

from paceline.net import wire
from paceline.net.rpc import channel
from paceline.sampling import SamplingParams
from paceline.session import SessionKey
from paceline.store import RedisStore, SessionRecord
from paceline.v1 import verifier_pb2, verifier_pb2_grpc
from tests.pods import MODEL, Pods
from tests.waiting import wait_until


class OpenSession:
    """A session at a verifier, and its text so far."""

    def __init__(self, prompt: Sequence[int], max_tokens: int, name: str = "") -> None:
        self.key = SessionKey(name or f"held-{secrets.token_hex(8)}", 1)
        self.prompt = list(prompt)
        # Prompt, then committed ids.
        self.ids = list(prompt)
        self.sampling = SamplingParams(max_tokens=max_tokens)
        self.opened = self.finished = False

    async def follow(self, made: grpc.aio.Channel) -> None:
        """Read its tokens to its end."""
        asked = verifier_pb2.OpenRequest(
            key=wire.key_to_proto(self.key),
            prompt_ids=self.prompt,
            sampling=wire.sampling_to_proto(self.sampling),
        )
        async for response in verifier_pb2_grpc.VerifierServiceStub(made).Open(asked, timeout=120):
            self.opened = True
            self.ids += response.tokens.token_ids
            self.finished |= response.HasField("finished")


@asynccontextmanager
async def opened(pods: Pods, *sessions: OpenSession) -> AsyncIterator[None]:
    """Sessions are open in the block, in this order, and cancelled behind it unless they have ended."""
    store = RedisStore(pods.redis_url, ttl_seconds=60)
    async with channel(pods.verifier) as made:
        following: list[asyncio.Task[None]] = []
        try:
            for session in sessions:
                await store.create(SessionRecord(session.key, MODEL, tuple(session.prompt), session.sampling))
                following.append(asyncio.create_task(session.follow(made)))
                await wait_until(partial(_opens, session, following[-1]), "it is open")
            yield
        finally:
            for task in following:
                task.cancel()
            await asyncio.wait(following)
            await store.close()
    await wait_until(lambda: pods.verifier_status().sessions == 0, "all sessions are gone")


def _opens(session: OpenSession, following: asyncio.Task[None]) -> bool:
    if following.done():
        # Raises what it was refused with.
        following.result()
    return session.opened
