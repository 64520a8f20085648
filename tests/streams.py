"""Clients' streams that a test reads in the background while it does something to the fleet."""

from __future__ import annotations

import asyncio

from paceline.client import Chunk, Finished, GatewayClient, Generation, Started
from paceline.store import RedisStore, SessionRecord
from tests.pods import Pod, Pods
from tests.waiting import wait_until

ASKED = Generation(text="the quick brown fox", max_tokens=1500, temperature=0.8, seed=5)


class Stream:
    """One client's stream, read in the background."""

    def __init__(self, pods: Pods, asked: Generation = ASKED) -> None:
        self.asked = asked
        self.events: list[Started | Chunk | Finished] = []
        self._pods = pods
        self._reading = asyncio.create_task(self._read())

    async def _read(self) -> None:
        async with GatewayClient(self._pods.grpc) as client:
            async for event in client.generate(self.asked, timeout_s=120):
                self.events.append(event)

    @property
    def chunks(self) -> list[Chunk]:
        return [event for event in self.events if isinstance(event, Chunk)]

    @property
    def token_ids(self) -> list[int]:
        return [token for chunk in self.chunks for token in chunk.token_ids]

    async def comes_to(self, tokens: int) -> None:
        await wait_until(lambda: self._reading.done() or len(self.token_ids) >= tokens, f"it has {tokens}")
        assert not self._reading.done()

    async def whole(self) -> list[int]:
        await self._reading
        started = self.events[0]
        assert isinstance(started, Started)
        position = started.prompt_tokens
        for chunk in self.chunks:
            assert chunk.position == position
            position += len(chunk.token_ids)
        return self.token_ids

    async def record(self) -> SessionRecord:
        """What Redis has of the session."""
        record = await self._recorded()
        assert record is not None
        return record

    async def record_of_end(self) -> SessionRecord:
        """What Redis comes to have of the session, once its end is in it."""

        async def has_ended() -> bool:
            record = await self._recorded()
            return record is not None and record.finish_reason is not None

        await wait_until(has_ended, "its end is recorded", 60)
        return await self.record()

    async def _recorded(self) -> SessionRecord | None:
        started = self.events[0]
        assert isinstance(started, Started)
        store = RedisStore(self._pods.redis_url, ttl_seconds=60)
        try:
            return await store.get(started.session_id)
        finally:
            await store.close()


def serving(pods: Pods) -> Pod:
    """The verifier that holds a session."""
    (address,) = [
        address
        for address in pods.verifiers
        if pods.pods[address].running and pods.verifier_status(address).sessions
    ]
    return pods.pods[address]
