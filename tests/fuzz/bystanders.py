"""Sessions that run beside all hostile input, whose texts must come out as if there were none."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable

from paceline.client import ChatMessage, Chunk, GatewayClient, Generation
from paceline.net import wire
from paceline.net.rpc import channel
from paceline.sampling import SamplingParams
from paceline.session import SessionKey
from paceline.store import RedisStore, SessionRecord
from paceline.v1 import verifier_pb2, verifier_pb2_grpc
from tests.pods import MODEL, Pods

# Stands for the victim's id in hostile messages; of the same length, so that it can be put into bytes.
VICTIM = b"victim-00000000"
VICTIM_EPOCH = 3
_PROMPT = (5, 6)
_SAMPLING = SamplingParams(max_tokens=600, temperature=0.7, seed=3)
VICTIM_LENGTH = len(_PROMPT) + _SAMPLING.max_tokens
_BESIDE = (
    Generation(chat=[ChatMessage("user", "the quick brown fox")], max_tokens=300, temperature=0.8, seed=11),
    Generation(text="the quick brown fox " * 4, max_tokens=300, temperature=0, speculation=False),
)
_LIFE_SECONDS = 120.0


class Bystanders:
    """Clients of the gateway, and a session at the verifier that hostile drafters know by its id."""

    def __init__(self, pods: Pods) -> None:
        self._pods = pods
        self._lives = itertools.count(1)
        self._expected: list[object] = []
        self._following: list[asyncio.Task[None]] = []
        self._leaving = False
        self.victim = VICTIM

    async def undisturbed(self) -> None:
        """Learn the texts while nobody does harm."""
        self._expected = [await read() for read in self._readers()]

    def start(self) -> None:
        """Follow all sessions, over and over."""
        self._leaving = False
        self._following = [
            asyncio.create_task(self._follow(number, read)) for number, read in enumerate(self._readers())
        ]

    async def stop(self) -> None:
        """Let each read to its end, and right; then leave."""
        self._leaving = True
        async with asyncio.timeout(_LIFE_SECONDS):
            await asyncio.gather(*self._following)
        self._following = []

    async def close(self) -> None:
        """End them, wherever they are."""
        self._leaving = True
        for task in self._following:
            task.cancel()
        if self._following:
            await asyncio.wait(self._following, timeout=10)

    def check(self) -> None:
        """Fail as soon as one has read what it should not."""
        for task in self._following:
            if task.done():
                task.result()

    def _readers(self) -> list[Callable[[], Awaitable[object]]]:
        asked = [lambda asked=asked: self._client(asked) for asked in _BESIDE]
        return [*asked, self._at_the_verifier]

    async def _follow(self, number: int, read: Callable[[], Awaitable[object]]) -> None:
        while True:
            assert await read() == self._expected[number]
            if self._leaving:
                return

    async def _client(self, asked: Generation) -> object:
        async with GatewayClient(self._pods.grpc) as client:
            events = client.generate(asked, timeout_s=_LIFE_SECONDS)
            return [token async for event in events if isinstance(event, Chunk) for token in event.token_ids]

    async def _at_the_verifier(self) -> object:
        victim = b"victim-%08d" % next(self._lives)
        key = SessionKey(victim.decode(), VICTIM_EPOCH)
        store = RedisStore(self._pods.redis_url, ttl_seconds=60)
        await store.create(SessionRecord(key, MODEL, _PROMPT, _SAMPLING))
        await store.close()
        asked = verifier_pb2.OpenRequest(
            key=wire.key_to_proto(key), prompt_ids=_PROMPT, sampling=wire.sampling_to_proto(_SAMPLING)
        )
        ids: list[int] = []
        async with channel(self._pods.verifier) as made:
            call = verifier_pb2_grpc.VerifierServiceStub(made).Open(asked, timeout=_LIFE_SECONDS)
            async for response in call:
                self.victim = victim
                ids += response.tokens.token_ids
        return ids
