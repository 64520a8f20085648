"""VerifierService.Status: what the verifier serves, and how much it has to do."""

from __future__ import annotations

import time
from collections.abc import Callable

import grpc

from paceline import __version__
from paceline.net.handshake import PROTOCOL_VERSION
from paceline.net.roles import Role, may_be
from paceline.net.rpc import refusals
from paceline.v1 import verifier_pb2
from verifier_svc.drafters import DrafterStreams
from verifier_svc.forecast import Forecast
from verifier_svc.identity import ServedModel
from verifier_svc.load import waiting
from verifier_svc.queues import GatewayQueues
from verifier_svc.standing import Standings
from verifier_svc.step import StepLoop

# An engine that has not gone round for so long hangs.
_STALLED_SECONDS = 10.0


class StatusRpc:
    """Answers with numbers of one moment."""

    def __init__(
        self,
        served: ServedModel,
        loop: StepLoop,
        streams: DrafterStreams,
        standings: Standings,
        forecast: Callable[[], Forecast],
        *,
        pool: str,
    ) -> None:
        """`forecast` is called with the table's lock held."""
        self._served = served
        self._forecast = forecast
        self._loop = loop
        self._streams = streams
        self._standings = standings
        self._pool = pool
        self._queues = GatewayQueues()

    @refusals
    async def Status(
        self, request: verifier_pb2.VerifierStatusRequest, context: grpc.aio.ServicerContext
    ) -> verifier_pb2.VerifierStatusResponse:
        """See verifier.proto."""
        served, loop = self._served, self._loop
        gateway_id = request.gateway_id[:64]
        if gateway_id and may_be(Role.GATEWAY, context):
            self._queues.heard(gateway_id, request.waiting)
        with loop.table.lock:
            totals = loop.totals
            sessions, draining = len(loop.table), loop.table.draining
            stalled = time.monotonic() - loop.beat_at > _STALLED_SECONDS
            free = loop.allocator.free
            without_kv, full_rows = waiting(loop.table.running()), loop.full_rows
            forecast = self._forecast()
        return verifier_pb2.VerifierStatusResponse(
            verifier_id=served.verifier_id,
            model_id=served.model_id,
            vocab_fingerprint=served.vocab_fingerprint,
            vocab_size=served.vocab_size,
            max_context=served.max_context,
            sessions=sessions,
            max_sessions=loop.table.max_sessions,
            kv_used=(loop.allocator.total - free) * served.block_size,
            kv_total=loop.allocator.total * served.block_size,
            session_steps=totals.session_steps,
            drafted_tokens=totals.drafted_tokens,
            accepted_tokens=totals.accepted_tokens,
            committed_tokens=totals.committed_tokens,
            drafters=self._streams.ids(),
            drafters_aside=self._standings.aside(),
            draining=draining,
            device=served.device,
            stalled=stalled,
            pool=self._pool,
            uptime_seconds=loop.load.uptime_seconds,
            busy_seconds=loop.load.busy_seconds,
            steps=loop.load.steps,
            rows=loop.load.rows,
            full_rows=full_rows,
            waiting=without_kv,
            wanted_trees=loop.load.wanted_trees,
            missing_trees=loop.load.missing_trees,
            waiting_elsewhere=self._queues.elsewhere(gateway_id),
            waiting_tokens=forecast.waiting_tokens,
            prompt_token_seconds=forecast.prompt_token_seconds,
            step_seconds=forecast.step_seconds,
            session_seconds=forecast.session_seconds,
            version=__version__,
            protocol_version=PROTOCOL_VERSION,
            clock_seconds=time.time(),
        )
