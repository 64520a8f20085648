"""A drafter that drafts nothing: it takes in hidden states, and says so or not."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import grpc
import numpy as np
from numpy.typing import NDArray

from paceline.features import MIN_WINDOW_BYTES, FeatureGrant, FeatureRequest
from paceline.net import rpc, wire
from paceline.net.handshake import PROTOCOL_VERSION, Hello
from paceline.session import SessionKey
from paceline.v1 import verifier_pb2, verifier_pb2_grpc


@dataclass
class Taken:
    """What came of one session since it was joined."""

    start: int
    # Length of the text that was told.
    told: int = 0
    states: bytearray = field(default_factory=bytearray)
    count: int = 0

    @property
    def stop(self) -> int:
        """The position behind the last one whose states came."""
        return self.start + self.count


class StateTaker:
    """One stream; what breaks the order of things is an assertion."""

    grant: FeatureGrant | None = None

    def __init__(self, call: Any, *, acknowledges: bool) -> None:
        self.call = call
        self.acknowledges = acknowledges
        self.sessions: dict[str, Taken] = {}
        self.errors: list[verifier_pb2.SessionError] = []
        self.welcome = verifier_pb2.Welcome()
        self.taken_bytes = 0
        self.messages = 0
        # What ended the stream.
        self.code: grpc.StatusCode | None = None

    async def join(self, key: SessionKey, known: int, features_from: int = 0) -> Taken:
        """Join a session; its states are taken in from now on."""
        taken = self.sessions[key.session_id] = Taken(features_from)
        join = verifier_pb2.Join(key=wire.key_to_proto(key), known_length=known, features_from=features_from)
        await self.say(joins=[join])
        return taken

    async def leave(self, key: SessionKey) -> None:
        """Leave a session."""
        await self.say(leaves=[key.session_id])

    async def say(self, **said: Any) -> None:
        """Send one message."""
        await self.call.write(verifier_pb2.DraftRequest(**said))

    async def read(self) -> None:
        """Take in all that comes, to the stream's end."""
        try:
            while (response := await self.call.read()) is not grpc.aio.EOF:
                await self._take(response)
        except grpc.aio.AioRpcError as error:
            self.code = error.code()
        except asyncio.InvalidStateError:
            # The stream has ended while it said something.
            self.code = await self.call.code()

    async def _take(self, response: verifier_pb2.DraftResponse) -> None:
        self.errors += response.errors
        for verdict in response.verdicts:
            taken = self.sessions[verdict.key.session_id]
            taken.told = max(taken.told, verdict.base_length + len(verdict.committed))
        if not response.features:
            return
        assert self.grant is not None
        assert not response.verdicts, "states come in messages of their own"
        assert not response.errors
        self.messages += 1
        for message in response.features:
            chunk = wire.chunk_from_proto(message, self.grant)
            taken = self.sessions[chunk.key.session_id]
            assert chunk.position == taken.stop, "once, and in order"
            taken.states += chunk.states
            taken.count += chunk.count
            assert taken.stop < taken.told, "behind the text, and the id that follows"
            self.taken_bytes += len(chunk.states)
        if self.acknowledges:
            await self.say(features_taken=self.taken_bytes)

    def states(self, key: SessionKey) -> NDArray[np.float32]:
        """What came of a session of a float32 model: [positions, layers, width]."""
        assert self.grant is not None
        assert self.grant.dtype == "float32"
        flat = np.frombuffer(bytes(self.sessions[key.session_id].states), dtype="<f4")
        return flat.reshape(-1, len(self.grant.layers), self.grant.width)


@asynccontextmanager
async def taking(
    address: str,
    layers: Sequence[int],
    *,
    window: int = MIN_WINDOW_BYTES,
    weights: str = "",
    version: int = PROTOCOL_VERSION,
    sources: Sequence[str] = ("text",),
    acknowledges: bool = True,
    reads: bool = True,
    connection: grpc.aio.Channel | None = None,
) -> AsyncIterator[StateTaker]:
    """A stream on a connection of its own, or on `connection`: by that a verifier knows who it is.

    `reads`: all that comes is taken in beside the block.
    """
    async with AsyncExitStack() as stack:
        made = connection or await stack.enter_async_context(rpc.channel(address))
        call = verifier_pb2_grpc.VerifierServiceStub(made).Draft(timeout=120)
        taker = StateTaker(call, acknowledges=acknowledges)
        hello = Hello(
            version,
            "taker",
            features=(FeatureRequest(tuple(layers), window, weights),),
            sources=tuple(sources),
        )
        await taker.say(hello=wire.hello_to_proto(hello))
        taker.welcome = (await call.read()).welcome
        if taker.welcome.HasField("features"):
            taker.grant = wire.grant_from_proto(taker.welcome.features)
        reading = asyncio.create_task(taker.read()) if reads else None
        try:
            yield taker
        finally:
            call.cancel()
            if reading is not None:
                with suppress(asyncio.CancelledError):
                    await reading
