"""Several who open one session at a verifier: the epoch says who may, and its drafter hears of the end."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import grpc
import pytest

from paceline.net import wire
from paceline.net.handshake import PROTOCOL_VERSION
from paceline.net.rpc import channel
from paceline.sampling import SamplingParams
from paceline.session import SessionKey
from paceline.store import RedisStore, SessionRecord
from paceline.v1 import verifier_pb2, verifier_pb2_grpc
from tests.bad_input import opening
from tests.pods import MODEL, Pods

SAMPLING = SamplingParams(max_tokens=1000)
Stub = verifier_pb2_grpc.VerifierServiceStub


class Owner:
    """Opens a session under an epoch, for as long as it runs."""

    def __init__(self, stub: Stub, session_id: str, epoch: int) -> None:
        self.key = SessionKey(session_id, epoch)
        self._call: Any = stub.Open(
            opening(key=wire.key_to_proto(self.key), sampling=wire.sampling_to_proto(SAMPLING)), timeout=60
        )

    async def hears_tokens(self) -> None:
        while not (await self._call.read()).tokens.token_ids:
            pass

    async def code(self) -> grpc.StatusCode:
        """How it ends."""
        with suppress(grpc.aio.AioRpcError):
            while await self._call.read() is not grpc.aio.EOF:
                pass
        return await self._call.code()

    def leave(self) -> None:
        self._call.cancel()


@asynccontextmanager
async def recorded(fleet: Pods, epoch: int) -> AsyncIterator[tuple[Stub, str]]:
    """A stub of the verifier, and a session that is recorded under `epoch`."""
    session_id = f"owned-{secrets.token_hex(8)}"
    store = RedisStore(fleet.redis_url, ttl_seconds=60)
    await store.create(SessionRecord(SessionKey(session_id, epoch), MODEL, (5, 6), SAMPLING))
    await store.close()
    async with channel(fleet.verifier) as made:
        yield Stub(made), session_id


async def test_whoever_comes_with_the_same_epoch_is_refused_and_the_owner_goes_on(fleet: Pods) -> None:
    async with recorded(fleet, 3) as (stub, session_id):
        owner = Owner(stub, session_id, 3)
        await owner.hears_tokens()
        assert await Owner(stub, session_id, 3).code() is grpc.StatusCode.ALREADY_EXISTS
        assert await Owner(stub, session_id, 2).code() is grpc.StatusCode.ABORTED
        await owner.hears_tokens()
        owner.leave()


async def test_a_later_epoch_takes_the_session_and_the_owner_before_is_told(fleet: Pods) -> None:
    async with recorded(fleet, 3) as (stub, session_id):
        before = Owner(stub, session_id, 3)
        await before.hears_tokens()
        later = Owner(stub, session_id, 4)
        assert await before.code() is grpc.StatusCode.ABORTED
        later.leave()


@pytest.mark.parametrize("leaves", [True, False], ids=["its client leaves", "it ends by itself"])
async def test_the_drafter_hears_the_end_once(fleet: Pods, leaves: bool) -> None:
    async with recorded(fleet, 3) as (stub, session_id):
        owner = Owner(stub, session_id, 3)
        await owner.hears_tokens()
        call: Any = stub.Draft(timeout=60)
        hello = verifier_pb2.Hello(protocol_version=PROTOCOL_VERSION, drafter_id="listener")
        await call.write(verifier_pb2.DraftRequest(hello=hello))
        assert (await call.read()).HasField("welcome")
        join = verifier_pb2.Join(key=wire.key_to_proto(owner.key), known_length=2)
        await call.write(verifier_pb2.DraftRequest(joins=[join]))
        ends = 0
        if leaves:
            assert (await call.read()).verdicts
            owner.leave()
        else:
            ending = asyncio.create_task(owner.code())
        while not ends:
            ends += sum(verdict.finished for verdict in (await call.read()).verdicts)
        if not leaves:
            assert await ending is grpc.StatusCode.OK
        # Nothing follows: a second end would be read before the stream's own.
        await call.done_writing()
        while (response := await call.read()) is not grpc.aio.EOF:
            ends += sum(verdict.finished for verdict in response.verdicts)
        assert ends == 1
