"""A gateway's gRPC face that says what a test wants: real wire, scripted content."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc

from paceline.net.rpc import RefusedError, refusals, start_server
from paceline.v1 import drafter_pb2, gateway_pb2, gateway_pb2_grpc, session_pb2, verifier_pb2


class ScriptedGateway(gateway_pb2_grpc.GatewayServiceServicer):
    """Says "Hi there" in two chunks, the first of which was drafted. `requests` holds what it was asked."""

    def __init__(self) -> None:
        self.requests: list[gateway_pb2.GenerateRequest] = []
        self.refusal: RefusedError | None = None
        self.finishes = True
        self.hangs = False
        self.cancelled = asyncio.Event()

    @refusals
    async def Generate(
        self, request: gateway_pb2.GenerateRequest, context: grpc.aio.ServicerContext
    ) -> AsyncIterator[gateway_pb2.GenerateResponse]:
        self.requests.append(request)
        if self.refusal is not None:
            raise self.refusal
        try:
            started = gateway_pb2.Started(session_id="s", model="tiny", prompt_tokens=3, seed=2**63)
            yield gateway_pb2.GenerateResponse(started=started)
            for text, position, ids, accepted in [("Hi", 3, [7, 8], 2), (" th\x1bere", 5, [9], 0)]:
                chunk = gateway_pb2.TextChunk(
                    text=text,
                    position=position,
                    token_ids=ids,
                    accepted=accepted,
                    durable=True,
                    characters=len(text),
                )
                yield gateway_pb2.GenerateResponse(chunk=chunk)
            if self.hangs:
                await asyncio.Event().wait()
            if self.finishes:
                receipt = session_pb2.Receipt(
                    steps=2, committed_tokens=3, drafted_tokens=4, accepted_tokens=2, drafted_steps=1
                )
                finished = verifier_pb2.Finished(reason=session_pb2.FINISH_REASON_STOP, receipt=receipt)
                yield gateway_pb2.GenerateResponse(finished=finished)
        except (asyncio.CancelledError, GeneratorExit):
            # Wherever in the script the client's goodbye finds it.
            self.cancelled.set()
            raise

    @refusals
    async def Fleet(
        self, request: gateway_pb2.FleetRequest, context: grpc.aio.ServicerContext
    ) -> gateway_pb2.FleetResponse:
        verifier = verifier_pb2.VerifierStatusResponse(
            model_id="tiny", device="cpu bfloat16", sessions=1, max_sessions=64, kv_used=1, kv_total=4
        )
        verifier.session_steps, verifier.committed_tokens = 2, 5
        drafter = drafter_pb2.DrafterStatusResponse(
            method="lookup+recycling", trees=6, drafted_tokens=10, accepted_tokens=5, draining=True
        )
        return gateway_pb2.FleetResponse(
            verifiers=[gateway_pb2.VerifierPod(address="v:1", healthy=True, status=verifier)],
            drafters=[
                gateway_pb2.DrafterPod(address="d:1", healthy=True, status=drafter),
                gateway_pb2.DrafterPod(address="d:2", healthy=False),
            ],
            sessions=1,
        )


@asynccontextmanager
async def scripted_gateway() -> AsyncIterator[tuple[ScriptedGateway, str]]:
    """Serve one; gives it and its address."""
    gateway = ScriptedGateway()
    server = await start_server(
        lambda running: gateway_pb2_grpc.add_GatewayServiceServicer_to_server(gateway, running),
        services=["paceline.v1.GatewayService"],
        host="127.0.0.1",
        port=0,
    )
    try:
        yield gateway, server.address
    finally:
        await server.stop(0)
