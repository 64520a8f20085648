"""A verifier that says what its test wants, over real sockets, and a gateway's sessions before it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import TypeAlias

import grpc

from gateway.admission import AdmissionControl
from gateway.discovery import Endpoints, StaticDiscovery
from gateway.fleet import Fleet
from gateway.limits import MemoryLedger, UsageLimits
from gateway.session import Policy
from gateway.sessions import Sessions
from paceline.net import rpc, wire
from paceline.session import FinishReason, Receipt
from paceline.store import MemoryStore, SessionStore
from paceline.v1 import verifier_pb2, verifier_pb2_grpc
from tests.waiting import wait_until

MODEL = "m"
PROMPT = (5, 6, 7)
BLOCK = 4
Response = verifier_pb2.OpenResponse
# What one call of Open does: it refuses the session; or admits it and then says responses, keeps silent for
# some seconds, or ends.
Script: TypeAlias = grpc.StatusCode | Sequence[Response | float | grpc.StatusCode]


def tokens(position: int, *ids: int) -> Response:
    return Response(tokens=verifier_pb2.CommittedTokens(position=position, token_ids=ids, durable=True))


ALIVE = Response(alive=verifier_pb2.Alive())
FINISHED = Response(
    finished=verifier_pb2.Finished(
        reason=wire.finish_reason_to_proto(FinishReason.LENGTH), receipt=wire.receipt_to_proto(Receipt())
    )
)
DIES = grpc.StatusCode.UNAVAILABLE


class ScriptedVerifier(verifier_pb2_grpc.VerifierServiceServicer):
    """Plays one script a call; the last one again and again."""

    def __init__(self, *scripts: Script, max_sessions: int = 9) -> None:
        """One with `max_sessions` refuses more, as real ones do."""
        self.scripts = scripts
        self.max_sessions = max_sessions
        # Sessions of other gateways, as it tells of them.
        self.others = 0
        self.opened: list[verifier_pb2.OpenRequest] = []
        self.traceparents: list[str] = []
        self.stalled = False
        # Calls that ran when each began, itself included.
        self.at_once: list[int] = []
        self._running = 0

    async def Open(
        self, request: verifier_pb2.OpenRequest, context: grpc.aio.ServicerContext
    ) -> AsyncIterator[Response]:
        script = self.scripts[min(len(self.opened), len(self.scripts) - 1)]
        self.opened.append(request)
        self.traceparents.append(dict(context.invocation_metadata() or ()).get("traceparent", ""))
        self._running += 1
        self.at_once.append(self._running)
        try:
            if self._running + self.others > self.max_sessions:
                await rpc.abort(context, rpc.RefusedError(grpc.StatusCode.RESOURCE_EXHAUSTED, "full"))
            if isinstance(script, grpc.StatusCode):
                await rpc.abort(context, rpc.RefusedError(script, "scripted"))
            yield Response(opened=verifier_pb2.Opened())
            for action in script:
                if isinstance(action, Response):
                    yield action
                elif isinstance(action, grpc.StatusCode):
                    await context.abort(action, "scripted")
                else:
                    await asyncio.sleep(action)
        finally:
            self._running -= 1

    async def Status(
        self, request: verifier_pb2.VerifierStatusRequest, context: grpc.aio.ServicerContext
    ) -> verifier_pb2.VerifierStatusResponse:
        return verifier_pb2.VerifierStatusResponse(
            model_id=MODEL,
            sessions=self._running + self.others,
            max_sessions=self.max_sessions,
            max_context=99,
            vocab_size=512,
            stalled=self.stalled,
        )

    async def Prefixes(
        self, request: verifier_pb2.PrefixesRequest, context: grpc.aio.ServicerContext
    ) -> verifier_pb2.PrefixesResponse:
        """It keeps texts, and has not yet said which."""
        return verifier_pb2.PrefixesResponse(instance=1, cursor=1, block_size=BLOCK)


@asynccontextmanager
async def serving(
    verifier: verifier_pb2_grpc.VerifierServiceServicer,
    *,
    silence_seconds: float = 9.0,
    store: SessionStore | None = None,
    poll_seconds: float = 0.05,
    queue_seconds: float = 0.0,
    max_sessions: int = 9,
    drafters: Sequence[str] = (),
    fleet: Fleet | None = None,
) -> AsyncIterator[Sessions]:
    """`drafters`: their addresses. `fleet`: for a test that looks into it; one that has no pods yet."""
    server = await rpc.start_server(
        lambda grpc_server: verifier_pb2_grpc.add_VerifierServiceServicer_to_server(verifier, grpc_server),
        services=["paceline.v1.VerifierService"],
        host="127.0.0.1",
        port=0,
    )
    fleet = fleet or Fleet(poll_seconds)
    fleet.start(StaticDiscovery(Endpoints.at((server.address,), tuple(drafters))))
    try:
        await wait_until(lambda: any(pod.healthy for pod in fleet.verifier_views()), "the verifier is seen")
        policy = Policy(strict=False, silence_seconds=silence_seconds, check_seconds=1)
        admission = AdmissionControl(MemoryLedger(), UsageLimits(), queue_seconds=queue_seconds)
        kept = MemoryStore() if store is None else store
        yield Sessions(fleet, kept, policy, admission, model_id=MODEL, max_sessions=max_sessions)
    finally:
        await fleet.close()
        await server.stop(0)
