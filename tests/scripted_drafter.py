"""A drafter that drafts nothing and says what its test wants, over real sockets."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from paceline.net import rpc
from paceline.v1 import drafter_pb2, drafter_pb2_grpc


class ScriptedDrafter(drafter_pb2_grpc.DrafterServiceServicer):
    """Takes sessions, and is connected to `verifiers`, as it says."""

    def __init__(self) -> None:
        self.verifiers: list[str] = []
        self.sessions: set[str] = set()
        self.attached: list[drafter_pb2.AttachRequest] = []
        self.asked = 0

    async def Attach(self, request: drafter_pb2.AttachRequest, context: object) -> drafter_pb2.AttachResponse:
        self.sessions.add(request.key.session_id)
        self.attached.append(request)
        return drafter_pb2.AttachResponse()

    async def Detach(self, request: drafter_pb2.DetachRequest, context: object) -> drafter_pb2.DetachResponse:
        self.sessions.discard(request.session_id)
        return drafter_pb2.DetachResponse()

    async def Status(
        self, request: drafter_pb2.DrafterStatusRequest, context: object
    ) -> drafter_pb2.DrafterStatusResponse:
        self.asked += 1
        return drafter_pb2.DrafterStatusResponse(
            drafter_id="d", max_sessions=9, sessions=len(self.sessions), verifiers=self.verifiers
        )


@asynccontextmanager
async def scripted_drafter() -> AsyncIterator[tuple[ScriptedDrafter, str]]:
    """Serve one; gives it and its address."""
    drafter = ScriptedDrafter()
    server = await rpc.start_server(
        lambda running: drafter_pb2_grpc.add_DrafterServiceServicer_to_server(drafter, running),
        services=["paceline.v1.DrafterService"],
        host="127.0.0.1",
        port=0,
    )
    try:
        yield drafter, server.address
    finally:
        await server.stop(0)
