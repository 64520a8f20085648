"""VerifierService: proto in, plain calls on the step loop, proto out."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator

import grpc

from paceline.net import handshake, wire
from paceline.net.peers import peer_of
from paceline.net.rpc import Refused, refusals
from paceline.sampling import SamplingParams
from paceline.service import telemetry
from paceline.session import FinishReason, SessionKey
from paceline.store import SessionRecord
from paceline.v1 import verifier_pb2, verifier_pb2_grpc
from paceline.verdict import Verdict
from verifier_svc.commit import (
    Alive,
    Aside,
    Broken,
    Committer,
    Event,
    Faulty,
    Finished,
    Lost,
    StepOutcome,
    Tokens,
    Unrecorded,
)
from verifier_svc.control import DraftControl
from verifier_svc.drafters import MAX_VERDICTS, DrafterStream, DrafterStreams
from verifier_svc.fairness import WorkBudget
from verifier_svc.identity import ServedModel
from verifier_svc.intake import Intake
from verifier_svc.progress import SessionStep
from verifier_svc.sessions import Refusal, Session, SessionRefusedError
from verifier_svc.standing import Standings
from verifier_svc.step import StepLoop

log = telemetry.logger(__name__)

# How often sessions without news hear that the engine is getting on.
_ALIVE_SECONDS = 1.0
# An engine that has not gone round for so long hangs.
_STALLED_SECONDS = 10.0
_MAX_REPLY = 16 << 10
# Of the event loop's time, what drafters may take that nobody has asked them for, and at once after a rest.
_UNASKED_SHARE, _UNASKED_SECONDS = 0.05, 0.1
# What a stream takes of it that begins.
_HELLO_SECONDS = 1e-3

REFUSAL_CODES = {
    Refusal.EXISTS: grpc.StatusCode.ALREADY_EXISTS,
    Refusal.STALE_EPOCH: grpc.StatusCode.ABORTED,
    Refusal.FULL: grpc.StatusCode.RESOURCE_EXHAUSTED,
    Refusal.DRAINING: grpc.StatusCode.UNAVAILABLE,
}


class VerifierServicer(verifier_pb2_grpc.VerifierServiceServicer):
    """The verifier's RPCs. One instance a process, on one event loop."""

    def __init__(
        self,
        served: ServedModel,
        loop: StepLoop,
        control: DraftControl,
        streams: DrafterStreams,
        committer: Committer,
        *,
        max_tree_nodes: int,
        max_tree_depth: int,
    ) -> None:
        self._served = served
        self._loop = loop
        self._streams = streams
        self._standings = Standings(on_aside=streams.wake)
        self._committer = committer
        self._work = WorkBudget(share=_UNASKED_SHARE, burst=_UNASKED_SECONDS)
        self._intake = Intake(
            loop.table,
            control,
            self._streams,
            self._standings,
            self._work,
            vocab_size=served.vocab_size,
            max_tree_nodes=max_tree_nodes,
            max_tree_depth=max_tree_depth,
        )
        self._max_tree_nodes = max_tree_nodes
        self._max_tree_depth = max_tree_depth

    def deliver(self, steps: list[SessionStep]) -> None:
        """Hand a step's results to committers and drafters; call on the event loop."""
        # First: whatever may be wrong with what drafters are told, no token is lost by it.
        self._committer.push((step.key, step.outcome) for step in steps)
        verdicts: dict[int, list[Verdict]] = {}
        for step in steps:
            if step.stream_id:
                verdicts.setdefault(step.stream_id, []).append(step.verdict)
        for stream_id, batch in verdicts.items():
            stream = self._streams.get(stream_id)
            if stream is not None:
                stream.send(batch)
                for verdict in batch:
                    if verdict.drafted:
                        self._standings.verified(stream.peer, verdict.accepted)
                if stream.overrun:
                    self._disconnect(stream)

    def give_up(self, session: Session, message: str) -> None:
        """End a session that cannot be computed, behind what it has come to; call on the event loop."""
        ended = StepOutcome((), 0, FinishReason.CANCELLED, fault=message)
        self._committer.push([(session.key, ended)])
        stream = self._streams.get(session.drafting.stream_id)
        if stream is not None:
            stream.dismiss(session.key, session.length)

    def blame(self, stream_id: int) -> None:
        """A tree of that stream cannot be computed; call on the event loop."""
        stream = self._streams.get(stream_id)
        if stream is not None:
            self._standings.harmed(stream.peer)

    async def say_alive(self) -> None:
        """Let sessions hear of the engine's progress, for ever."""
        beats = -1
        while True:
            await asyncio.sleep(_ALIVE_SECONDS)
            if self._loop.beats != beats:
                beats = self._loop.beats
                self._committer.say_alive()

    @refusals
    async def Open(
        self, request: verifier_pb2.OpenRequest, context: grpc.aio.ServicerContext
    ) -> AsyncIterator[verifier_pb2.OpenResponse]:
        """See verifier.proto."""
        session = self._session(request)
        key = session.key
        with telemetry.rpc_span("verifier.session", context) as span:
            span.set_attribute(telemetry.SESSION_ID, key.session_id)
            try:
                with self._loop.table.lock:
                    self._replace(key)
                    self._loop.table.add(session)
                    events = self._committer.open(self._record(session, request.reply))
                    self._loop.table.lock.notify_all()
            except SessionRefusedError as error:
                raise Refused(REFUSAL_CODES[error.refusal], str(error)) from error
            try:
                yield verifier_pb2.OpenResponse(opened=verifier_pb2.Opened())
                while True:
                    event = _checked(await events.get())
                    yield _event_to_proto(event)
                    if isinstance(event, Finished):
                        span.set_attribute(telemetry.FINISH_REASON, str(event.reason))
                        return
            finally:
                self._let_go(session)
                self._committer.close(key)

    def _replace(self, key: SessionKey) -> None:
        """End what an earlier owner left open here; call with the lock held."""
        held = self._loop.table.get(key.session_id)
        if held is not None and held.key.epoch < key.epoch:
            self._committer.lose(held.key)
            self._let_go(held)

    def _let_go(self, session: Session) -> None:
        """Take a session out, and tell its drafter."""
        with self._loop.table.lock:
            ended = session.finish_reason is not None
            self._loop.cancel(session)
        stream = self._streams.get(session.drafting.stream_id)
        if stream is not None and not ended:
            stream.dismiss(session.key, session.length)

    def _record(self, session: Session, reply: str) -> SessionRecord:
        ids, prompt = session.token_ids, session.prompt_length
        return SessionRecord(
            session.key,
            self._served.model_id,
            tuple(ids[:prompt]),
            session.sampling,
            tuple(ids[prompt:]),
            reply,
        )

    def _session(self, request: verifier_pb2.OpenRequest) -> Session:
        """The session a request asks for. Raises `Refused` or `WireError`, each naming its field."""
        served = self._served
        if request.model_id and request.model_id != served.model_id:
            raise Refused(
                grpc.StatusCode.FAILED_PRECONDITION,
                f"this verifier serves {served.model_id!r}, not {request.model_id!r}",
            )
        key = wire.key_from_proto(request.key)
        vocab = served.vocab_size
        prompt = wire.ids_from_proto(request.prompt_ids, vocab_size=vocab, field="prompt_ids")
        committed = wire.ids_from_proto(request.committed_ids, vocab_size=vocab, field="committed_ids")
        sampling = wire.sampling_from_proto(request.sampling, vocab_size=vocab)
        if not prompt:
            raise wire.WireError("prompt_ids", "must hold at least one id")
        _check_length(len(prompt), len(committed), sampling, served.max_context)
        if len(request.reply) > _MAX_REPLY:
            raise wire.WireError("reply", f"is at most {_MAX_REPLY} characters")
        return Session(
            key=key,
            prompt_length=len(prompt),
            token_ids=[*prompt, *committed],
            sampling=sampling,
            length_limit=len(prompt) + sampling.max_tokens,
            opened_length=len(prompt) + len(committed),
        )

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
            raise Refused(
                grpc.StatusCode.INVALID_ARGUMENT, "the first message must hold `hello`", field="hello"
            )
        hello = first.hello
        handshake.check_hello(
            protocol_version=hello.protocol_version,
            drafter_id=hello.drafter_id,
            feedback_top_k=hello.feedback_top_k,
            vocab_fingerprint=hello.vocab_fingerprint,
            served_fingerprint=self._served.vocab_fingerprint,
        )
        self._standings.named(peer, hello.drafter_id)
        stream = self._streams.open(peer, hello.drafter_id, hello.feedback_top_k, self._intake.ledger())
        reading = asyncio.create_task(self._read_trees(first, request_iterator, stream))
        try:
            yield verifier_pb2.DraftResponse(welcome=self._welcome())
            while True:
                await stream.wake.wait()
                stream.wake.clear()
                if stream.overrun:
                    raise Refused(
                        grpc.StatusCode.RESOURCE_EXHAUSTED, f"more than {MAX_VERDICTS} verdicts were not read"
                    )
                verdicts, errors = stream.take()
                if verdicts or errors:
                    yield verifier_pb2.DraftResponse(
                        verdicts=[wire.verdict_to_proto(verdict) for verdict in verdicts], errors=errors
                    )
                self._check_standing(peer)
                if reading.done():
                    reading.result()
                    return
        finally:
            reading.cancel()
            self._disconnect(stream)

    def _check_standing(self, peer: str) -> None:
        fault = self._standings.fault(peer)
        if fault is not None:
            raise Refused(grpc.StatusCode.FAILED_PRECONDITION, f"the drafter is put aside: {fault}")

    def _welcome(self) -> verifier_pb2.Welcome:
        served = self._served
        return verifier_pb2.Welcome(
            verifier_id=served.verifier_id,
            model_id=served.model_id,
            vocab_fingerprint=served.vocab_fingerprint,
            vocab_size=served.vocab_size,
            max_tree_nodes=self._max_tree_nodes,
            max_tree_depth=self._max_tree_depth,
        )

    def _disconnect(self, stream: DrafterStream) -> None:
        """Let a stream's sessions go on without it. Idempotent."""
        if self._streams.get(stream.stream_id) is None:
            return
        self._streams.close(stream)
        held = self._intake.end(stream)
        if stream.drafting:
            log.info("drafter disconnected", drafter=stream.drafter_id, peer=stream.peer)
        if seconds := self._standings.seconds_aside(stream.peer):
            for session in held:
                self._committer.say_aside(session.key, seconds)

    async def _read_trees(
        self,
        first: verifier_pb2.DraftRequest,
        requests: AsyncIterator[verifier_pb2.DraftRequest],
        stream: DrafterStream,
    ) -> None:
        try:
            await self._intake.take(first, stream, first=True)
            # The next is not read, let alone decoded, before the one before it has been taken in.
            async for request in requests:
                await stream.room()
                if stream.overrun or not self._intake.hears(stream):
                    return
                await self._intake.take(request, stream)
        finally:
            stream.wake.set()

    @refusals
    async def Status(
        self, request: verifier_pb2.VerifierStatusRequest, context: grpc.aio.ServicerContext
    ) -> verifier_pb2.VerifierStatusResponse:
        """See verifier.proto."""
        served, loop = self._served, self._loop
        with loop.table.lock:
            totals = loop.totals
            sessions, draining = len(loop.table), loop.table.draining
            stalled = time.monotonic() - loop.beat_at > _STALLED_SECONDS
            free = loop.allocator.free
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
        )


def _check_length(prompt: int, committed: int, sampling: SamplingParams, max_context: int) -> None:
    if prompt >= max_context:
        raise wire.WireError("prompt_ids", f"{prompt} ids do not fit the context of {max_context}")
    if prompt + sampling.max_tokens > max_context:
        raise wire.WireError(
            "sampling.max_tokens",
            f"{sampling.max_tokens} tokens after a prompt of {prompt} do not fit the context of "
            f"{max_context}; at most {max_context - prompt} do",
        )
    if committed >= sampling.max_tokens:
        raise wire.WireError("committed_ids", f"{committed} ids are no fewer than max_tokens")


def _checked(event: Event) -> Tokens | Finished | Alive | Aside:
    """An event to stream. Raises `Refused` when the session is lost or cannot go on, or the engine failed."""
    if isinstance(event, Lost):
        raise Refused(grpc.StatusCode.ABORTED, event.message)
    if isinstance(event, Unrecorded):
        raise Refused(grpc.StatusCode.UNAVAILABLE, event.message)
    if isinstance(event, Faulty):
        raise Refused(grpc.StatusCode.FAILED_PRECONDITION, event.message)
    if isinstance(event, Broken):
        raise Refused(grpc.StatusCode.INTERNAL, "the engine failed; the session can be resumed elsewhere")
    return event


def _event_to_proto(event: Tokens | Finished | Alive | Aside) -> verifier_pb2.OpenResponse:
    if isinstance(event, Alive):
        return verifier_pb2.OpenResponse(alive=verifier_pb2.Alive())
    if isinstance(event, Aside):
        return verifier_pb2.OpenResponse(
            drafter_aside=verifier_pb2.DrafterAside(seconds=math.ceil(event.seconds))
        )
    if isinstance(event, Tokens):
        return verifier_pb2.OpenResponse(
            tokens=verifier_pb2.CommittedTokens(
                position=event.position,
                token_ids=event.token_ids,
                accepted=event.accepted,
                durable=event.durable,
                drafted=event.drafted,
            )
        )
    return verifier_pb2.OpenResponse(
        finished=verifier_pb2.Finished(
            reason=wire.finish_reason_to_proto(event.reason), receipt=wire.receipt_to_proto(event.receipt)
        )
    )
