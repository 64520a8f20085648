"""A drafter that floods a verifier: sound trees for sessions that do not exist, as fast as they are read."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import grpc

from paceline.net.handshake import PROTOCOL_VERSION
from paceline.v1 import session_pb2, tree_pb2, verifier_pb2, verifier_pb2_grpc

TREES = 64


def flood_message() -> verifier_pb2.DraftRequest:
    """Trees that break no rule, of sessions that nobody has opened."""
    return verifier_pb2.DraftRequest(
        trees=[
            tree_pb2.TokenTree(
                key=session_pb2.SessionKey(session_id=secrets.token_urlsafe(24), epoch=1),
                base_length=20,
                token=range(3, 34),
                parent=range(-1, 30),
                log_prob=[-0.5] * 31,
            )
            for _ in range(TREES)
        ]
    )


class Flooder:
    """Floods until it is cancelled; comes back on a new connection whenever it is sent away."""

    def __init__(self, dial: Callable[[], grpc.aio.Channel], name: str) -> None:
        self._dial = dial
        self._name = name
        self.messages = 0
        # Streams that it was sent away from.
        self.ended = 0

    async def run(self) -> None:
        """Never returns."""
        message = flood_message()
        while True:
            async with self._dial() as channel:
                await self._stream(channel, message)
            self.ended += 1

    async def _stream(self, channel: grpc.aio.Channel, message: verifier_pb2.DraftRequest) -> None:
        call = verifier_pb2_grpc.VerifierServiceStub(channel).Draft()
        hello = verifier_pb2.Hello(protocol_version=PROTOCOL_VERSION, drafter_id=self._name)
        # A write fails when the stream has ended; gRPC's client gives that a code of its own.
        # Whoever does not read what it is told is not read any further.
        reading = asyncio.create_task(_read(call))
        with suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
            await call.write(verifier_pb2.DraftRequest(hello=hello))
            while not call.done():
                await call.write(message)
                self.messages += 1
        call.cancel()
        await asyncio.wait({reading})


async def _read(call: Any) -> None:
    with suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
        while await call.read() is not grpc.aio.EOF:
            pass
