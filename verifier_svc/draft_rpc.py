"""VerifierService.Draft: a drafter's one stream, with all its sessions' trees up and verdicts down."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import grpc

from paceline.net import handshake, wire
from paceline.net.peers import peer_of
from paceline.net.rpc import RefusedError, refusals
from paceline.v1 import verifier_pb2
from verifier_svc import metrics
from verifier_svc.drafters import MAX_VERDICTS, DrafterStream, DrafterStreams
from verifier_svc.fairness import WorkBudget
from verifier_svc.feature_reads import FeatureReads
from verifier_svc.features import StateFlow
from verifier_svc.identity import ServedModel
from verifier_svc.intake import Intake
from verifier_svc.session_drafts import SessionDrafts
from verifier_svc.standing import Standings

# The share of the event loop's time for what drafters do unasked, and the seconds of it saved up by a rest.
_UNASKED_SHARE, _UNASKED_SECONDS = 0.05, 0.1
# The event loop's time that a stream's beginning takes.
_HELLO_SECONDS = 1e-3
# The event loop's time that it takes to send a byte of hidden states.
_STATE_BYTE_SECONDS = 0.5e-9


class DraftRpc:
    """One call for each connected drafter. On the event loop."""

    def __init__(
        self,
        served: ServedModel,
        drafts: SessionDrafts,
        streams: DrafterStreams,
        standings: Standings,
        features: FeatureReads,
    ) -> None:
        self._served = served
        self._features = features
        self._drafts = drafts
        self._streams = streams
        self._standings = standings
        self._work = WorkBudget(share=_UNASKED_SHARE, burst=_UNASKED_SECONDS)
        self._intake = Intake(drafts, streams, standings, self._work)

    @refusals
    async def Draft(
        self,
        request_iterator: AsyncIterator[verifier_pb2.DraftRequest],
        context: grpc.aio.ServicerContext,
    ) -> AsyncIterator[verifier_pb2.DraftResponse]:
        """See verifier.proto."""
        peer = peer_of(context)
        # New streams are work, too.
        await self._work.pay(peer, _HELLO_SECONDS)
        self._check_standing(peer)
        first = await anext(aiter(request_iterator), None)
        if first is None or not first.HasField("hello"):
            raise RefusedError(
                grpc.StatusCode.INVALID_ARGUMENT, "the first message must hold `hello`", field="hello"
            )
        stream = self._opened(peer, wire.hello_from_proto(first.hello))
        reading = asyncio.create_task(self._intake.read(first, request_iterator, stream))
        paying: asyncio.Task[None] | None = None
        try:
            yield _counted(verifier_pb2.DraftResponse(welcome=self._welcome(stream.flow)))
            while True:
                await stream.wake.wait()
                stream.wake.clear()
                if stream.overrun:
                    raise RefusedError(
                        grpc.StatusCode.RESOURCE_EXHAUSTED, f"more than {MAX_VERDICTS} verdicts were not read"
                    )
                verdicts, errors = stream.take()
                if verdicts or errors:
                    yield _counted(
                        verifier_pb2.DraftResponse(
                            verdicts=[wire.verdict_to_proto(verdict) for verdict in verdicts], errors=errors
                        )
                    )
                self._check_standing(peer)
                if reading.done():
                    reading.result()
                    return
                if stream.flow is not None and (chunks := await self._features.following(stream)):
                    yield _counted(verifier_pb2.DraftResponse(features=map(wire.chunk_to_proto, chunks)))
                    # There may be more. What has come meanwhile goes first.
                    if stream.flow.owed_bytes:
                        paying = asyncio.create_task(self._pay(stream, stream.flow))
                    else:
                        stream.wake.set()
        finally:
            reading.cancel()
            if paying is not None:
                paying.cancel()
            self._drafts.end(stream)

    def _opened(self, peer: str, hello: handshake.Hello) -> DrafterStream:
        """The stream of a drafter that fits, with what is granted to it."""
        handshake.check_hello(
            hello,
            vocab_fingerprint=self._served.vocab_fingerprint,
            weights_fingerprint=self._served.weights_fingerprint,
            num_layers=self._served.num_layers,
        )
        self._standings.named(peer, hello.drafter_id)
        granted = self._features.kept.grant(hello.features)
        return self._streams.open(
            peer,
            hello.drafter_id,
            hello.feedback_top_k,
            self._drafts.ledger(sources=len(hello.sources)),
            hello.sources,
            StateFlow(*granted) if granted is not None else None,
        )

    async def _pay(self, stream: DrafterStream, flow: StateFlow) -> None:
        """Let the stream have more states when those that were sent again have been paid for."""
        await self._work.pay(stream.peer, flow.owed_bytes * _STATE_BYTE_SECONDS)
        flow.paid()
        stream.wake.set()

    def _check_standing(self, peer: str) -> None:
        reason = self._standings.reason_aside(peer)
        if reason is not None:
            raise RefusedError(grpc.StatusCode.FAILED_PRECONDITION, f"the drafter is put aside: {reason}")

    def _welcome(self, flow: StateFlow | None) -> verifier_pb2.Welcome:
        served, bounds = self._served, self._drafts.bounds
        return verifier_pb2.Welcome(
            verifier_id=served.verifier_id,
            model_id=served.model_id,
            vocab_fingerprint=served.vocab_fingerprint,
            vocab_size=served.vocab_size,
            max_tree_nodes=bounds.max_nodes,
            max_tree_depth=bounds.max_depth,
            features=wire.grant_to_proto(flow.grant) if flow is not None else None,
            weights_fingerprint=served.weights_fingerprint,
        )


def _counted(response: verifier_pb2.DraftResponse) -> verifier_pb2.DraftResponse:
    """A message that goes down now."""
    metrics.DRAFT_BYTES_DOWN.inc(response.ByteSize())
    return response
