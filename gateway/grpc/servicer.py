"""GatewayService: sessions over gRPC."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing, contextmanager
from typing import Any

import grpc
from opentelemetry.trace import Span

from gateway.chat import Chat
from gateway.choices import Told
from gateway.core import Gateway, observed
from gateway.errors import CONTEXT_LENGTH, INVALID, STALLED, RequestError
from gateway.events import Chunk, Event, Finished, Mark, Untold
from gateway.generation import Asked, Form, Generation
from gateway.grpc import chats
from gateway.grpc.key_check import as_refused, calling
from gateway.grpc.messages import Messages
from gateway.prompt import Prompt
from gateway.reading import PLAIN, Reader
from gateway.request import Handling, Terms, served_model
from gateway.tools.demand import demanded
from paceline.logprobs import LogprobsWanted
from paceline.net import parameters, wire
from paceline.net.rpc import refusals, write
from paceline.prefix import MAX_SALT
from paceline.sampling import SamplingError, SamplingRequest
from paceline.service import spans, telemetry
from paceline.session import SpeculationLimits
from paceline.v1 import gateway_pb2 as pb
from paceline.v1 import gateway_pb2_grpc, session_pb2

log = telemetry.logger(__name__)


class GatewayServicer(gateway_pb2_grpc.GatewayServiceServicer):
    """See gateway.proto."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    @refusals
    async def Generate(
        self,
        request: pb.GenerateRequest,
        context: grpc.aio.ServicerContext[pb.GenerateRequest, pb.GenerateResponse],
    ) -> None:
        """One continuation, streamed."""
        with _refused(), spans.rpc_span("gateway.request", context) as span, spans.Stages(span) as stages:
            await _begin(span, context)
            stages.enter("gateway.tokenise")
            caller = calling()
            if request.HasField("constraint"):
                constraint = wire.constraint_from_proto(request.constraint, field="constraint")
                await self._gateway.trials.run(constraint, "constraint", caller.id)
            wanted = self._wanted(request)
            stages.end()
            reading, special = wanted.form.reading, wanted.form.special_tokens
            detokenizer = self._gateway.prompts.detokenizer(reading, special=special)
            events = self._gateway.sessions.generate(wanted, caller, detokenizer, span, _deadline(context))
            await self._tell(events, Untold(reader=Reader(reading)), context, span)

    @refusals
    async def Resume(
        self,
        request: pb.ResumeRequest,
        context: grpc.aio.ServicerContext[pb.ResumeRequest, pb.GenerateResponse],
    ) -> None:
        """The rest of a session."""
        with _refused(), spans.rpc_span("gateway.request", context) as span:
            await _begin(span, context)
            caller = calling()
            claimed = await self._gateway.sessions.claim(request.session_id, caller)
            reading, special = claimed.wanted.form.reading, claimed.wanted.form.special_tokens
            detokenizer = self._gateway.prompts.detokenizer(reading, special=special)
            events = self._gateway.sessions.resume(claimed, caller, detokenizer, span, _deadline(context))
            mark = Mark(request.session_id, request.position, request.characters)
            await self._tell(events, Untold(mark, Reader(reading)), context, span)

    async def _tell(
        self,
        events: AsyncGenerator[Event, None],
        untold: Untold,
        context: grpc.aio.ServicerContext[Any, pb.GenerateResponse],
        span: Span,
    ) -> None:
        """Write what the client does not have, each event when the client has room for it.

        A client without room for too long loses its session. If it reads again, it gets the error.
        """
        writing: asyncio.Future[None] | None = None
        messages = Messages(self._gateway.model_name)
        try:
            async with aclosing(_new(observed(_alone(events), "grpc", span), untold)) as counted:
                async for event in counted:
                    # Not cancelled at the timeout: no status can follow half a message.
                    writing = asyncio.ensure_future(write(context, messages.of(event)))
                    await asyncio.wait({writing}, timeout=self._gateway.client_stall_seconds)
                    if not writing.done():
                        break
                    writing.result()
                else:
                    return
            log.info("a client that takes nothing is let go")
            await writing
            raise RequestError(STALLED, "the client took nothing for too long; the session can be resumed")
        finally:
            if writing is not None:
                writing.cancel()

    @refusals
    async def Cancel(
        self,
        request: pb.CancelRequest,
        context: grpc.aio.ServicerContext[pb.CancelRequest, pb.CancelResponse],
    ) -> pb.CancelResponse:
        """End a session, wherever it runs."""
        with _refused():
            caller = calling()
            reason = await self._gateway.sessions.cancel(request.session_id, caller)
        return pb.CancelResponse(reason=wire.finish_reason_to_proto(reason))

    @refusals
    async def Fleet(
        self, request: pb.FleetRequest, context: grpc.aio.ServicerContext[pb.FleetRequest, pb.FleetResponse]
    ) -> pb.FleetResponse:
        """The fleet as this gateway sees it."""
        sessions = self._gateway.sessions
        return sessions.fleet.to_proto(sessions.running)

    def _wanted(self, request: pb.GenerateRequest) -> Generation | Asked:
        gateway = self._gateway
        served = served_model(gateway.sessions.fleet.verifier_views(), gateway.model_name, request.model)
        sampling = _sampling(request)
        prompt: Prompt | tuple[int, ...]
        reading = PLAIN
        kind = request.WhichOneof("prompt")
        if kind == "text":
            prompt = gateway.prompts.from_text(request.text)
        elif kind == "chat":
            use = chats.tool_use(request)
            chat = Chat(chats.turns(request.chat), use.offered())
            reading = gateway.prompts.reading(chat, use, tells_thoughts=chats.tells_thoughts(request))
            sampling = demanded(sampling, use, reading)
            prompt = gateway.prompts.from_chat(chat)
        elif kind == "tokens":
            cut = bool(request.truncate_prompt_tokens)
            prompt = tuple(request.tokens.ids) if cut else _ids(request.tokens, served.max_context)
        else:
            raise RequestError(INVALID, "one of text, chat and tokens must be given", "prompt")
        if kind != "chat" and request.tools:
            raise RequestError(INVALID, "only a chat's answer calls tools", "tools")
        if len(request.cache_salt) > MAX_SALT:
            raise RequestError(INVALID, f"cache_salt is at most {MAX_SALT} characters", "cache_salt")
        form = Form(
            "chat" if kind == "chat" else "text",
            special_tokens=request.show_special_tokens,
            stop_in_text=request.include_stop,
            reading=reading,
        )
        handling = Handling(
            request.truncate_prompt_tokens or None,
            priority=request.priority,
            cache_salt=request.cache_salt,
            limits=_limits(request.speculation_limits),
            logprobs=_logprobs(request.logprobs, served.vocab_size),
            prediction=gateway.prompts.from_text(request.prediction, special=False)
            if request.prediction
            else None,
        )
        stop_ids = gateway.prompts.stop_token_ids
        bad_words = gateway.prompts.bad_words(sampling.bad_words)
        terms = Terms(sampling, served, stop_ids, form, kind, bad_words=bad_words, handling=handling)
        return terms.ask(prompt)


def _logprobs(message: session_pb2.LogprobsWanted, vocab_size: int) -> LogprobsWanted:
    try:
        return wire.logprobs_from_proto(message, vocab_size=vocab_size)
    except wire.WireError as error:
        raise RequestError(INVALID, str(error), error.field) from None


async def _begin(span: Span, context: grpc.aio.ServicerContext[Any, Any]) -> None:
    """Tell the caller of a call that begins what its trace is."""
    span.set_attribute(spans.FACE, "grpc")
    if told := spans.response(span):
        try:
            await context.send_initial_metadata(((spans.RESPONSE_HEADER, told),))
        except grpc.aio.InternalError as error:
            # As in `paceline.net.rpc.write`: the call has ended on the client's side.
            raise asyncio.CancelledError from error


async def _alone(events: AsyncGenerator[Event, None]) -> AsyncGenerator[Told, None]:
    """The events of a call's one session."""
    async with aclosing(events):
        async for event in events:
            yield Told(0, event)


async def _new(events: AsyncGenerator[Told, None], untold: Untold) -> AsyncGenerator[Event, None]:
    """The events, without what of their text is not new."""
    async with aclosing(events):
        async for told in events:
            event: Event | None = told.event
            if isinstance(event, Chunk):
                event = untold.of(event)
            elif isinstance(event, Finished) and (rest := untold.rest()) is not None:
                yield rest
            if event is not None:
                yield event


@contextmanager
def _refused() -> Iterator[None]:
    try:
        yield
    except RequestError as error:
        raise as_refused(error) from error


def _deadline(context: grpc.aio.ServicerContext[Any, Any]) -> float | None:
    """The client's deadline on the monotonic clock; None if it has none."""
    left = context.time_remaining()
    return None if left is None else time.monotonic() + left


def _ids(tokens: pb.TokenPrompt, context: int) -> tuple[int, ...]:
    if len(tokens.ids) >= context:
        raise RequestError(
            CONTEXT_LENGTH,
            f"the prompt has {len(tokens.ids)} tokens, the model's context {context}; "
            "at least one must be left for the answer",
            "tokens",
        )
    return tuple(tokens.ids)


def _limits(message: session_pb2.SpeculationLimits) -> SpeculationLimits:
    try:
        return wire.limits_from_proto(message)
    except wire.WireError:
        field = "speculation_limits.method"
        raise RequestError(INVALID, f"{field} must be 1 to 32 of a-z 0-9 _ -", field) from None


def _sampling(request: pb.GenerateRequest) -> SamplingRequest:
    """Raises `RequestError` for a parameter outside its bounds."""
    given = parameters.values(request, SamplingRequest)
    if request.HasField("speculation"):
        given["speculation"] = request.speculation
    if request.HasField("constraint"):
        given["constraint"] = wire.constraint_from_proto(request.constraint, field="constraint")
    asked = SamplingRequest(**given)
    try:
        asked.check()
    except SamplingError as error:
        raise RequestError(INVALID, f"{error.field} {error}", error.field) from None
    return asked
