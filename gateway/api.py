"""OpenAI-compatible routes; server-sent events out; errors as OpenAI writes them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from typing import Any, Literal

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from opentelemetry.trace import Span, SpanKind
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect

from gateway import body, errors, headers, openapi, replies, schema
from gateway.access_log import AccessLog, Slashless
from gateway.caller import Caller
from gateway.chat_template import ChatTurn
from gateway.disconnect import ClientGone, EventStream, until_disconnect
from gateway.errors import RequestError
from gateway.events import Chunk, Event, Mark, Started, Untold
from gateway.generation import Asked, Form, Generation
from gateway.keys import ApiKeys
from gateway.prompt import Prompts
from gateway.readiness import Readiness
from gateway.replies import Reply
from gateway.request import Terms, Wishes, served_model
from gateway.sessions import Sessions
from gateway.tokenizing import Tokenizing
from paceline import __version__, telemetry
from paceline.api_keys import Scope

log = telemetry.logger(__name__)

# Larger bodies are parsed beside the event loop, and wait at most so long for that.
_LARGE_BYTES = 64 << 10
_PARSE_SECONDS = 10.0
# After so long without an event a stream says that it waits: silent connections are taken for dead ones. As
# often as HTML's standard advises; oftener would fail benchmarks that take every line for an event.
_IDLE_SECONDS = 15.0


class Gateway:
    """What both faces need: the model's prompts, the sessions, the keys, and bounds."""

    def __init__(
        self,
        prompts: Prompts,
        sessions: Sessions,
        keys: ApiKeys | None,
        *,
        model_name: str,
        max_body_bytes: int,
        request_seconds: float,
        client_stall_seconds: float,
        cors_origins: Sequence[str] = (),
    ) -> None:
        """Without keys everybody is served."""
        self.prompts = prompts
        self.sessions = sessions
        self.keys = keys
        self.model_name = model_name
        self.max_body_bytes = max_body_bytes
        self.request_seconds = request_seconds
        self.client_stall_seconds = client_stall_seconds
        self.cors_origins = cors_origins
        self.started = int(time.time())
        self.readiness = Readiness(sessions)
        self.parsing = Tokenizing()

    async def asked(self, request: Request, caller: Caller, kind: type[schema.R]) -> schema.R:
        """What the request asks for. Raises `RequestError`."""
        body.check_media_type(request)
        given = await body.read(request, self.max_body_bytes)
        if len(given) <= _LARGE_BYTES:
            return schema.parse(given, kind)
        until = asyncio.get_running_loop().time() + _PARSE_SECONDS
        try:
            return await self.parsing.run(
                caller.id, len(given), lambda: schema.parse(given, kind), until=until
            )
        except TimeoutError:
            raise RequestError(errors.OVERLOADED, "too many large bodies wait to be read") from None

    def chat(self, asked: schema.ChatRequest) -> Generation | Asked:
        """The session of a chat request."""
        served = served_model(self.sessions.fleet.verifier_views(), self.model_name, asked.model)
        roles = {"developer": "system"}
        turns = [ChatTurn(roles.get(message.role, message.role), message.text) for message in asked.messages]
        limit = asked.max_completion_tokens
        field = "max_tokens" if limit is None else "max_completion_tokens"
        wishes = _wishes(asked, asked.max_tokens if limit is None else limit)
        form = _form(asked, "chat")
        terms = Terms(wishes, served, self.prompts.stop_token_ids, form, "messages", field)
        return terms.ask(self.prompts.from_chat(turns))

    def completion(self, asked: schema.CompletionRequest) -> Generation | Asked:
        """The session of a completion request. OpenAI's default of 16 tokens holds here."""
        served = served_model(self.sessions.fleet.verifier_views(), self.model_name, asked.model)
        given = asked.prompt
        wishes = _wishes(asked, 16 if asked.max_tokens is None else asked.max_tokens)
        terms = Terms(wishes, served, self.prompts.stop_token_ids, _form(asked, "text"), "prompt")
        return terms.ask(self.prompts.from_text(given) if isinstance(given, str) else tuple(given))


def _form(asked: schema.Sampled, kind: Literal["chat", "text"]) -> Form:
    if asked.stream_options is not None and not asked.stream:
        raise RequestError(
            errors.invalid("invalid_value"), "stream_options is only taken with stream=true", "stream_options"
        )
    options = asked.stream_options or schema.StreamOptions()
    return Form(kind, options.include_usage, int(time.time()), options.continuous_usage_stats)


def _wishes(asked: schema.Sampled, max_tokens: int | None) -> Wishes:
    return Wishes(
        max_tokens=max_tokens,
        temperature=asked.temperature,
        top_k=asked.top_k,
        top_p=asked.top_p,
        min_p=asked.min_p,
        seed=asked.seed,
        stops=asked.stops,
        stop_token_ids=tuple(asked.stop_token_ids or ()),
        ignore_eos=bool(asked.ignore_eos),
        min_tokens=asked.min_tokens or 0,
        speculation=asked.speculation is None or asked.speculation.enabled,
    )


def build_app(gateway: Gateway) -> FastAPI:
    """The HTTP application."""
    app = FastAPI(
        title="Paceline",
        version=__version__,
        description="OpenAI-compatible API of a Paceline gateway.",
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    openapi.describe(app, schema.ChatRequest, schema.CompletionRequest)
    _add_error_handlers(app)

    app.add_middleware(Slashless)
    if gateway.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=gateway.cors_origins,
            allow_methods=["GET", "POST", "DELETE"],
            allow_headers=["*"],
            expose_headers=["*"],
        )
    app.add_middleware(AccessLog)

    @app.head("/healthz", include_in_schema=False)
    @app.get("/healthz")
    async def healthz() -> dict[str, str]:
        """The process is alive."""
        return {"status": "ok"}

    @app.head("/health", include_in_schema=False)
    @app.get("/health")
    @app.head("/readyz", include_in_schema=False)
    @app.get("/readyz")
    async def readyz() -> JSONResponse:
        """Whether a request sent now would be served."""
        problem = await gateway.readiness.problem()
        return JSONResponse({"status": problem or "ok"}, 503 if problem else 200)

    @app.head("/v1/models", include_in_schema=False)
    @app.get("/v1/models")
    async def models(request: Request) -> dict[str, Any]:
        """The model served."""
        headers.caller(gateway.keys, request)
        return {"object": "list", "data": [_model(gateway)]}

    @app.head("/v1/models/{name:path}", include_in_schema=False)
    @app.get("/v1/models/{name:path}")
    async def model(name: str, request: Request) -> dict[str, Any]:
        """One model."""
        headers.caller(gateway.keys, request)
        if name != gateway.model_name:
            raise RequestError(errors.UNKNOWN_MODEL, f"the model {name!r} does not exist", "model")
        return _model(gateway)

    @app.post("/v1/chat/completions", openapi_extra=openapi.body_of(schema.ChatRequest))
    async def chat_completions(request: Request) -> Response:
        """A chat's next message, whole or streamed."""
        caller = headers.caller(gateway.keys, request, Scope.GENERATE)
        asked = await gateway.asked(request, caller, schema.ChatRequest)
        return await _respond(gateway, request, caller, asked, gateway.chat(asked))

    @app.post("/v1/completions", openapi_extra=openapi.body_of(schema.CompletionRequest))
    async def completions(request: Request) -> Response:
        """A text's continuation, whole or streamed."""
        caller = headers.caller(gateway.keys, request, Scope.GENERATE)
        asked = await gateway.asked(request, caller, schema.CompletionRequest)
        return await _respond(gateway, request, caller, asked, gateway.completion(asked))

    @app.get("/v1/sessions/{session_id}/events")
    async def session_events(session_id: str, request: Request) -> Response:
        """The rest of a stream that broke, behind the event that `Last-Event-ID` names; all of it without."""
        caller = headers.caller(gateway.keys, request, Scope.GENERATE)
        mark = _mark(request) or Mark(session_id)
        if mark.session_id != session_id:
            raise RequestError(
                errors.invalid("invalid_value"), "Last-Event-ID is of another session", "Last-Event-ID"
            )
        return await _resume(gateway, request, caller, mark)

    @app.delete("/v1/sessions/{session_id}")
    async def cancel_session(session_id: str, request: Request) -> dict[str, Any]:
        """End a session, wherever it runs."""
        caller = headers.caller(gateway.keys, request, Scope.GENERATE)
        reason = await gateway.sessions.cancel(session_id, caller)
        return {"id": session_id, "object": "session", "finish_reason": str(reason)}

    return app


async def _respond(
    gateway: Gateway, request: Request, caller: Caller, asked: schema.Sampled, wanted: Generation | Asked
) -> Response:
    mark = _mark(request)
    if mark is not None and asked.stream:
        return await _resume(gateway, request, caller, mark)
    deadline = headers.deadline(request, gateway.request_seconds)
    sessions, detokenizer = gateway.sessions, gateway.prompts.detokenizer()
    events = _events(request, lambda span: sessions.generate(wanted, caller, detokenizer, span, deadline))
    reply = Reply(wanted.form, gateway.model_name)
    if not asked.stream:
        return await _whole(until_disconnect(events, request, deadline), reply)
    watched = until_disconnect(events, request, deadline, idle_seconds=_IDLE_SECONDS)
    return await _streamed(watched, reply, Untold(), marked=headers.wants_event_ids(request))


async def _resume(gateway: Gateway, request: Request, caller: Caller, mark: Mark) -> Response:
    deadline = headers.deadline(request, gateway.request_seconds)
    sessions, detokenizer = gateway.sessions, gateway.prompts.detokenizer()
    record = await sessions.claim(mark.session_id, caller)
    events = _events(request, lambda span: sessions.resume(record, caller, detokenizer, span, deadline))
    wanted, _ = Generation.recorded(record)
    reply = Reply(wanted.form, gateway.model_name)
    watched = until_disconnect(events, request, deadline, idle_seconds=_IDLE_SECONDS)
    return await _streamed(watched, reply, Untold(mark), marked=True)


async def _whole(watched: AsyncGenerator[Event | None, None], reply: Reply) -> Response:
    allowance = None
    try:
        async with aclosing(watched):
            async for event in watched:
                if event is None:
                    continue
                if isinstance(event, Started):
                    allowance = event.allowance
                reply.take(event)
    except ClientGone:
        return Response(status_code=499)
    return JSONResponse(reply.whole(), headers=headers.of_allowance(allowance))


async def _streamed(
    watched: AsyncGenerator[Event | None, None], reply: Reply, untold: Untold, *, marked: bool
) -> Response:
    """A stream of what is untold; where the session cannot begin, its error with a status of its own.

    One that waits for long begins its stream with comments; should it then be refused, the stream says so.
    """
    try:
        first = await anext(watched)
    except ClientGone:
        return Response(status_code=499)
    except BaseException:
        await watched.aclose()
        raise
    left = headers.of_allowance(first.allowance if isinstance(first, Started) else None)
    return EventStream(_stream(_behind(first, watched), reply, untold, marked=marked), left)


async def _behind(
    first: Event | None, rest: AsyncGenerator[Event | None, None]
) -> AsyncGenerator[Event | None, None]:
    async with aclosing(rest):
        yield first
        async for event in rest:
            yield event


def _mark(request: Request) -> Mark | None:
    last = request.headers.get("last-event-id")
    return Mark.parse(last) if last else None


async def _events(
    request: Request, begin: Callable[[Span], AsyncGenerator[Event, None]]
) -> AsyncGenerator[Event, None]:
    parent = telemetry.extract(dict(request.headers))
    with telemetry.span("gateway.request", parent, kind=SpanKind.SERVER) as span:
        async with aclosing(observed(begin(span), "http")) as counted:
            async for event in counted:
                yield event


async def _stream(
    events: AsyncGenerator[Event | None, None], reply: Reply, untold: Untold, *, marked: bool
) -> AsyncGenerator[bytes, None]:
    async with aclosing(events):
        try:
            async for part in replies.stream(events, reply, untold, marked=marked):
                yield part
        except ClientGone:
            return
        except RequestError as error:
            yield replies.sse(error.body())


async def observed(events: AsyncGenerator[Event, None], face: str) -> AsyncGenerator[Event, None]:
    """The same events, counted and timed."""
    started = last = time.monotonic()
    outcome = "cancelled"
    try:
        async with aclosing(events):
            async for event in events:
                if isinstance(event, Chunk) and event.token_ids:
                    now = time.monotonic()
                    if last == started:
                        telemetry.FIRST_TOKEN_SECONDS.observe(now - started)
                    else:
                        telemetry.INTER_TOKEN_SECONDS.observe((now - last) / len(event.token_ids))
                    last = now
                yield event
        outcome = "done"
    except RequestError as error:
        outcome = error.kind.code or error.kind.type
        raise
    finally:
        telemetry.REQUESTS.labels(face=face, outcome=outcome).inc()


def _model(gateway: Gateway) -> dict[str, Any]:
    return {"id": gateway.model_name, "object": "model", "created": gateway.started, "owned_by": "paceline"}


def _add_error_handlers(app: FastAPI) -> None:
    @app.exception_handler(RequestError)
    async def refused(request: Request, error: RequestError) -> JSONResponse:
        return JSONResponse(error.body(), error.kind.status, headers=headers.of_error(error))

    @app.exception_handler(HTTPException)
    async def routing(request: Request, error: HTTPException) -> JSONResponse:
        kind = errors.WRONG_METHOD if error.status_code == 405 else errors.NO_ROUTE
        message = f"{request.method} {request.url.path} is not served here"
        return JSONResponse(RequestError(kind, message).body(), error.status_code, headers=error.headers)

    @app.exception_handler(ClientDisconnect)
    async def gone(request: Request, error: ClientDisconnect) -> Response:
        return Response(status_code=499)

    @app.exception_handler(Exception)
    async def unexpected(request: Request, error: Exception) -> JSONResponse:
        log.error("unexpected error in a request", path=request.url.path, exc_info=error)
        told = RequestError(errors.INTERNAL, "internal error; the gateway's log has the details")
        return JSONResponse(told.body(), 500)
