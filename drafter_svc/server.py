"""The drafter's gRPC calls: Attach, Detach and Status."""

from __future__ import annotations

import re
import time

import grpc

from drafter_svc.config import DrafterSettings
from drafter_svc.draft_trace import DraftTrace
from drafter_svc.hypothesis import Guess, Hypothesis
from drafter_svc.links import Links
from paceline import __version__
from paceline.addresses import AddressError, join_address, parse_address
from paceline.net import wire
from paceline.net.handshake import PROTOCOL_VERSION
from paceline.net.rpc import RefusedError, refusals
from paceline.service import spans
from paceline.session import MAX_PREDICTION_IDS
from paceline.v1 import drafter_pb2 as pb
from paceline.v1 import drafter_pb2_grpc

_TENANT = re.compile(r"[A-Za-z0-9._-]{0,128}")
# Bound of ids until the verifier has said its vocabulary size.
_ANY_VOCABULARY = 1 << 31


class DrafterServicer(drafter_pb2_grpc.DrafterServiceServicer):
    """Serves the calls that gateways make to a drafter."""

    def __init__(self, drafter_id: str, settings: DrafterSettings, links: Links) -> None:
        self._drafter_id = drafter_id
        self._settings = settings
        self._links = links

    @refusals
    async def Attach(
        self,
        request: pb.AttachRequest,
        context: grpc.aio.ServicerContext[pb.AttachRequest, pb.AttachResponse],
    ) -> pb.AttachResponse:
        """Draft for a session at a verifier from now on."""
        address = _address(request.verifier_address)
        vocab_size = self._links.vocab_size(address) or _ANY_VOCABULARY
        hypothesis = Hypothesis(
            wire.key_from_proto(request.key),
            wire.sampling_from_proto(request.sampling, vocab_size=vocab_size),
            wire.ids_from_proto(request.known_ids, vocab_size=vocab_size, field="known_ids"),
            _tenant(request.tenant),
            _guess(request, vocab_size),
        )
        if not hypothesis.ids:
            raise RefusedError(grpc.StatusCode.INVALID_ARGUMENT, "known_ids is empty", field="known_ids")
        span = spans.tracer().start_span("drafter.session", context=spans.extract_rpc(context))
        span.set_attributes(
            {
                spans.SESSION_ID: hypothesis.key.session_id,
                spans.EPOCH: hypothesis.key.epoch,
                spans.VERIFIER: address,
            }
        )
        trace = DraftTrace.of(span, hypothesis.base_length)
        try:
            await self._links.attach(address, hypothesis, trace)
        except RefusedError as error:
            spans.fail(span, error)
            span.end()
            raise
        return pb.AttachResponse()

    @refusals
    async def Detach(
        self,
        request: pb.DetachRequest,
        context: grpc.aio.ServicerContext[pb.DetachRequest, pb.DetachResponse],
    ) -> pb.DetachResponse:
        """Stop drafting for a session."""
        await self._links.detach(request.session_id)
        return pb.DetachResponse()

    @refusals
    async def Status(
        self,
        request: pb.DrafterStatusRequest,
        context: grpc.aio.ServicerContext[pb.DrafterStatusRequest, pb.DrafterStatusResponse],
    ) -> pb.DrafterStatusResponse:
        """What the drafter is doing."""
        links, counters = self._links, self._links.counters
        return pb.DrafterStatusResponse(
            drafter_id=self._drafter_id,
            method=self._settings.method,
            sessions=links.sessions,
            max_sessions=self._settings.max_sessions,
            trees=counters.trees,
            drafted_tokens=counters.drafted_tokens,
            accepted_tokens=counters.accepted_tokens,
            verifiers=links.verifiers,
            draining=links.draining,
            pool=self._settings.pool,
            uptime_seconds=links.load.uptime_seconds,
            busy_seconds=links.load.busy_seconds,
            version=__version__,
            protocol_version=PROTOCOL_VERSION,
            clock_seconds=time.time(),
        )


def _address(text: str) -> str:
    try:
        return join_address(*parse_address(text))
    except AddressError as error:
        raise RefusedError(
            grpc.StatusCode.INVALID_ARGUMENT, f"verifier_address: {error}", field="verifier_address"
        ) from error


def _guess(request: pb.AttachRequest, vocab_size: int) -> Guess | None:
    if not request.prediction_ids:
        return None
    if len(request.prediction_ids) > MAX_PREDICTION_IDS:
        raise RefusedError(
            grpc.StatusCode.INVALID_ARGUMENT,
            f"prediction_ids takes at most {MAX_PREDICTION_IDS} ids",
            field="prediction_ids",
        )
    if not 0 < request.prompt_length <= len(request.known_ids):
        raise RefusedError(
            grpc.StatusCode.INVALID_ARGUMENT,
            f"prompt_length must be 1 to {len(request.known_ids)}, as many ids are known",
            field="prompt_length",
        )
    ids = wire.ids_from_proto(request.prediction_ids, vocab_size=vocab_size, field="prediction_ids")
    return Guess(ids, request.prompt_length)


def _tenant(text: str) -> str:
    if not _TENANT.fullmatch(text):
        raise RefusedError(
            grpc.StatusCode.INVALID_ARGUMENT,
            "tenant must be at most 128 letters, digits, '.', '_' or '-'",
            field="tenant",
        )
    return text
