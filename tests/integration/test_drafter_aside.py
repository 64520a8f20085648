"""A drafter that sends garbage loses its sessions to one that does not, and nobody's text changes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import grpc
import pytest

from paceline.client import Chunk, GatewayClient, Generation
from paceline.net import rpc
from paceline.v1 import drafter_pb2, drafter_pb2_grpc, tree_pb2, verifier_pb2, verifier_pb2_grpc
from tests.pods import Pods
from tests.waiting import wait_until
from verifier_svc.standing import JUDGED_TREES

ASKED = Generation(text="the quick brown fox " * 8, max_tokens=1500, temperature=0)
PLAIN = Generation(text=ASKED.text, max_tokens=1500, temperature=0, speculation=False)
GARBAGE = "garbage"


class GarbageDrafter(drafter_pb2_grpc.DrafterServiceServicer):
    """Takes every session and sends trees with cycles for it."""

    def __init__(self) -> None:
        self.attached = 0
        self.ended_with: list[grpc.StatusCode] = []
        self._drafting: set[asyncio.Task[None]] = set()

    async def Attach(
        self, request: drafter_pb2.AttachRequest, context: grpc.aio.ServicerContext
    ) -> drafter_pb2.AttachResponse:
        self.attached += 1
        self._drafting.add(asyncio.create_task(self._draft(request)))
        return drafter_pb2.AttachResponse()

    async def Detach(
        self, request: drafter_pb2.DetachRequest, context: grpc.aio.ServicerContext
    ) -> drafter_pb2.DetachResponse:
        return drafter_pb2.DetachResponse()

    async def Status(
        self, request: drafter_pb2.DrafterStatusRequest, context: grpc.aio.ServicerContext
    ) -> drafter_pb2.DrafterStatusResponse:
        return drafter_pb2.DrafterStatusResponse(drafter_id=GARBAGE, max_sessions=99)

    async def _draft(self, request: drafter_pb2.AttachRequest) -> None:
        async with rpc.channel(request.verifier_address) as channel:
            call = verifier_pb2_grpc.VerifierServiceStub(channel).Draft()
            hello = verifier_pb2.Hello(protocol_version=1, drafter_id=GARBAGE)
            try:
                await call.write(verifier_pb2.DraftRequest(hello=hello))
                await call.read()
                known = len(request.known_ids)
                join = verifier_pb2.Join(key=request.key, known_length=known)
                await call.write(verifier_pb2.DraftRequest(joins=[join]))
                cycle = tree_pb2.TokenTree(
                    key=request.key, base_length=known, token=[1, 2], parent=[1, 0], log_prob=[-1, -1]
                )
                # In one message: a write that meets the stream's end hides why it was ended.
                await call.write(verifier_pb2.DraftRequest(trees=[cycle] * JUDGED_TREES))
                while await call.read() is not grpc.aio.EOF:
                    pass
            except grpc.aio.AioRpcError:
                pass
            self.ended_with.append(await call.code())
            # On the same connection: by it the verifier knows this one.
            again = verifier_pb2_grpc.VerifierServiceStub(channel).Draft()
            with suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
                await again.write(
                    verifier_pb2.DraftRequest(hello=verifier_pb2.Hello(protocol_version=1, drafter_id="x"))
                )
            self.ended_with.append(await again.code())


@asynccontextmanager
async def garbage_drafter(address: str) -> AsyncIterator[GarbageDrafter]:
    drafter = GarbageDrafter()
    host, _, port = address.rpartition(":")
    server = await rpc.start_server(
        lambda running: drafter_pb2_grpc.add_DrafterServiceServicer_to_server(drafter, running),
        services=["paceline.v1.DrafterService"],
        host=host,
        port=int(port),
    )
    try:
        yield drafter
    finally:
        await server.stop(0)


@pytest.fixture
def pods(tmp_path: Path, tiny_model: Path, redis_url: str) -> Iterator[Pods]:
    with Pods(tmp_path, tiny_model, redis_url, drafters=2) as made:
        yield made.start(drafters=False)


async def ids_of(pods: Pods, asked: Generation) -> list[int]:
    async with GatewayClient(pods.grpc) as client:
        events = [event async for event in client.generate(asked, timeout_s=120)]
    return [token for event in events if isinstance(event, Chunk) for token in event.token_ids]


async def test_a_garbage_drafter_is_replaced(pods: Pods) -> None:
    expected = await ids_of(pods, PLAIN)
    # The gateway tries the first address first.
    first, second = sorted(pods.drafters)
    async with garbage_drafter(first) as garbage:
        pods.launch_drafter(second)
        await asyncio.to_thread(pods.until_all_are_seen)
        assert await ids_of(pods, ASKED) == expected
        assert garbage.attached == 1
        assert garbage.ended_with == [grpc.StatusCode.FAILED_PRECONDITION] * 2
        status = pods.verifier_status()
        (aside,) = status.drafters_aside
        assert aside.startswith(GARBAGE)
        assert status.accepted_tokens > 0, "the other drafter took over"
        assert await ids_of(pods, ASKED) == expected
        assert garbage.attached == 1, "it gets no new session"
        await wait_until(lambda: pods.drafter_status(second).sessions == 0, "nothing is left behind")
