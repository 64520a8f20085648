"""VerifierService.Open: a gateway opens a session here and follows its tokens."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator

import grpc

from paceline.constraints.constraint import ConstraintError
from paceline.constraints.matcher import GrammarMatcher, MatcherError
from paceline.constraints.matchers import Matchers
from paceline.net import wire
from paceline.net.rpc import RefusedError, refusals
from paceline.prefix import MAX_SALT, root_of
from paceline.sampling import SamplingParams
from paceline.service import spans
from paceline.session import SessionKey
from paceline.store import SessionRecord
from paceline.v1 import verifier_pb2
from verifier_svc.commit import Committer
from verifier_svc.delivery import Delivery
from verifier_svc.drafting import Drafting
from verifier_svc.events import Alive, Aside, Broken, Event, Faulty, Finished, Lost, Tokens, Unrecorded
from verifier_svc.identity import ServedModel
from verifier_svc.prompt_scores import PromptScores
from verifier_svc.session_trace import SessionTrace
from verifier_svc.sessions import Refusal, Session, SessionRefusedError
from verifier_svc.step import StepLoop

# Characters of the name of a reply.
_MAX_REPLY = 64 << 10

REFUSAL_CODES = {
    Refusal.EXISTS: grpc.StatusCode.ALREADY_EXISTS,
    Refusal.STALE_EPOCH: grpc.StatusCode.ABORTED,
    Refusal.FULL: grpc.StatusCode.RESOURCE_EXHAUSTED,
    Refusal.DRAINING: grpc.StatusCode.UNAVAILABLE,
}


class OpenRpc:
    """One call for each session, which lives as long as its call. On the event loop."""

    def __init__(
        self,
        served: ServedModel,
        matchers: Matchers,
        loop: StepLoop,
        committer: Committer,
        delivery: Delivery,
    ) -> None:
        self._served = served
        self._matchers = matchers
        self._loop = loop
        self._table = loop.table
        self._committer = committer
        self._delivery = delivery

    @refusals
    async def Open(
        self, request: verifier_pb2.OpenRequest, context: grpc.aio.ServicerContext
    ) -> AsyncIterator[verifier_pb2.OpenResponse]:
        """See verifier.proto."""
        session = session_from_request(request, self._served)
        session.matcher = await self._matcher(session)
        key = session.key
        with spans.rpc_span("verifier.session", context) as span:
            span.set_attributes(
                {
                    spans.SESSION_ID: key.session_id,
                    spans.EPOCH: key.epoch,
                    spans.PROMPT_TOKENS: session.prompt_length,
                }
            )
            trace = session.trace = SessionTrace.of(span, session.length)
            try:
                with self._table.lock:
                    self._end_earlier_owner(key)
                    self._table.add(session)
                    events = self._committer.open(
                        self._record(session, request.reply, request.committed_logprobs), trace
                    )
                    self._table.lock.notify_all()
            except SessionRefusedError as error:
                raise RefusedError(REFUSAL_CODES[error.refusal], str(error)) from error
            try:
                yield verifier_pb2.OpenResponse(opened=verifier_pb2.Opened())
                while True:
                    event = await events.get()
                    if isinstance(event, Finished) and trace is not None:
                        # Before the gateway hears of it and ends the span above.
                        drafting = session.drafting
                        trace.end(event.receipt, event.reason, reply_seconds=drafting.reply_seconds)
                    yield response_for(event)
                    if isinstance(event, Finished):
                        return
            finally:
                self._let_go(session)
                self._committer.close(key)
                if trace is not None:
                    trace.end(session.receipt(), reply_seconds=session.drafting.reply_seconds)

    async def _matcher(self, session: Session) -> GrammarMatcher | None:
        """What holds the session to its constraint, if it has one. Raises `WireError`."""
        sampling = session.sampling
        if sampling.constraint is None:
            return None
        try:
            return await self._matchers.matcher(
                sampling.constraint,
                sampling.stop_token_ids,
                session.token_ids[session.prompt_length :],
                least=sampling.stop_from - session.prompt_length,
            )
        except ConstraintError as error:
            raise wire.WireError("sampling.constraint", str(error)) from error
        except MatcherError as error:
            raise wire.WireError("committed_ids", str(error)) from error

    def _end_earlier_owner(self, key: SessionKey) -> None:
        """End what an owner with a lower epoch left open here; call with the lock held."""
        held = self._table.get(key.session_id)
        if held is not None and held.key.epoch < key.epoch:
            self._committer.lose(held.key)
            self._let_go(held)

    def _let_go(self, session: Session) -> None:
        """Take a session out, and tell its drafter unless it has heard the end."""
        with self._table.lock:
            ended = session.finish_reason is not None
            self._loop.cancel(session)
        if not ended:
            self._delivery.dismiss_drafter(session)

    def _record(self, session: Session, reply: str, committed_logprobs: bytes) -> SessionRecord:
        ids, prompt = session.token_ids, session.prompt_length
        return SessionRecord(
            session.key,
            self._served.model_id,
            tuple(ids[:prompt]),
            session.sampling,
            tuple(ids[prompt:]),
            reply,
            logprobs=session.logprobs,
            committed_logprobs=committed_logprobs,
        )


def session_from_request(request: verifier_pb2.OpenRequest, served: ServedModel) -> Session:
    """The session that a request asks for. Raises `RefusedError` or `WireError`, each naming its field."""
    if request.model_id and request.model_id != served.model_id:
        raise RefusedError(
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
    logprobs = wire.logprobs_from_proto(request.logprobs, vocab_size=vocab)
    if len(request.committed_logprobs) != len(committed) * logprobs.width:
        raise wire.WireError(
            "committed_logprobs",
            f"{len(request.committed_logprobs)} bytes are not those of {len(committed)} ids",
        )
    limits = wire.limits_from_proto(request.speculation)
    if len(request.cache_salt) > MAX_SALT:
        raise wire.WireError("cache_salt", f"is at most {MAX_SALT} characters")
    if len(request.reply) > _MAX_REPLY:
        raise wire.WireError("reply", f"is at most {_MAX_REPLY} characters")
    return Session(
        key=key,
        prompt_length=len(prompt),
        token_ids=[*prompt, *committed],
        sampling=sampling,
        length_limit=len(prompt) + sampling.max_tokens,
        opened_length=len(prompt) + len(committed),
        plain=request.plain,
        text_root=root_of(request.cache_salt),
        limits=limits,
        drafting=Drafting(method=limits.method),
        logprobs=logprobs,
        prompt_scores=None
        if logprobs.prompt_top is None
        else PromptScores(logprobs.prompt_top, len(prompt) - 1),
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


def response_for(event: Event) -> verifier_pb2.OpenResponse:
    """An event as it is streamed. Raises `RefusedError` for one that ends the stream without a result."""
    match event:
        case Tokens():
            return verifier_pb2.OpenResponse(
                tokens=verifier_pb2.CommittedTokens(
                    position=event.position,
                    token_ids=event.token_ids,
                    accepted=event.accepted,
                    durable=event.durable,
                    drafted=event.drafted,
                    sources=wire.sources_to_proto(event.sources),
                    logprobs=event.logprobs,
                    prompt_logprobs=event.prompt_logprobs,
                    drafted_by_depth=event.drafts.by_depth,
                    draft_wait_seconds=event.drafts.wait_seconds,
                    draft_bytes=event.drafts.bytes,
                )
            )
        case Finished():
            return verifier_pb2.OpenResponse(
                finished=verifier_pb2.Finished(
                    reason=wire.finish_reason_to_proto(event.reason),
                    receipt=wire.receipt_to_proto(event.receipt),
                )
            )
        case Alive():
            return verifier_pb2.OpenResponse(alive=verifier_pb2.Alive())
        case Aside():
            seconds = math.ceil(event.seconds)
            return verifier_pb2.OpenResponse(drafter_aside=verifier_pb2.DrafterAside(seconds=seconds))
        case Lost():
            raise RefusedError(grpc.StatusCode.ABORTED, event.message)
        case Unrecorded():
            raise RefusedError(grpc.StatusCode.UNAVAILABLE, event.message)
        case Faulty():
            code = grpc.StatusCode.OUT_OF_RANGE if event.asked else grpc.StatusCode.FAILED_PRECONDITION
            raise RefusedError(code, event.message)
        case Broken():
            raise RefusedError(
                grpc.StatusCode.INTERNAL, "the engine failed; the session can be resumed elsewhere"
            )
