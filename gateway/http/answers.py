"""A session's events as an HTTP answer: one body, or server-sent events."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing

from fastapi import Request
from fastapi.responses import JSONResponse, Response
from opentelemetry.trace import Span

from gateway.caller import Caller
from gateway.core import Gateway, observed
from gateway.errors import RequestError
from gateway.events import Event, Mark, Started, Untold
from gateway.generation import Asked, Generation
from gateway.http import headers, replies, schema
from gateway.http.disconnect import ClientGoneError, EventStream, until_disconnect
from gateway.http.replies import Reply
from paceline.service import spans

# A stream without an event for this long sends a comment, as silent connections are often taken for dead. The
# HTML standard advises this interval. A shorter one would fail benchmarks that count each line as an event.
_IDLE_SECONDS = 15.0


async def respond(
    gateway: Gateway,
    request: Request,
    caller: Caller,
    asked: schema.Sampled,
    wanted: Generation | Asked,
    stages: spans.Stages,
) -> Response:
    """A new session's answer, whole or streamed, or the rest of a broken stream. Raises `RequestError`.

    `stages`: those of the request's span.
    """
    mark = headers.mark(request)
    if mark is not None and asked.stream:
        return await resume(gateway, request, caller, mark, stages)
    deadline = headers.deadline(request, gateway.request_seconds)
    sessions, detokenizer = gateway.sessions, gateway.prompts.detokenizer()
    events = _events(stages, lambda span: sessions.generate(wanted, caller, detokenizer, span, deadline))
    reply = Reply(wanted.form, gateway.model_name)
    if not asked.stream:
        return await _whole(until_disconnect(events, request, deadline), reply)
    watched = until_disconnect(events, request, deadline, idle_seconds=_IDLE_SECONDS)
    return await _streamed(watched, reply, Untold(), marked=headers.wants_event_ids(request))


async def resume(
    gateway: Gateway, request: Request, caller: Caller, mark: Mark, stages: spans.Stages
) -> Response:
    """The rest of a recorded session's stream. Raises `RequestError`."""
    deadline = headers.deadline(request, gateway.request_seconds)
    sessions, detokenizer = gateway.sessions, gateway.prompts.detokenizer()
    claimed = await sessions.claim(mark.session_id, caller)
    events = _events(stages, lambda span: sessions.resume(claimed, caller, detokenizer, span, deadline))
    reply = Reply(claimed.wanted.form, gateway.model_name)
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
    except ClientGoneError:
        return Response(status_code=499)
    return JSONResponse(reply.whole(), headers=headers.of_allowance(allowance))


async def _streamed(
    watched: AsyncGenerator[Event | None, None], reply: Reply, untold: Untold, *, marked: bool
) -> Response:
    """A stream of what the client does not have. If the session cannot begin, the error has its HTTP status.

    A session that waits for long begins its stream with comments; a later refusal then comes as an event.
    """
    try:
        first = await anext(watched)
    except ClientGoneError:
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


async def _events(
    stages: spans.Stages, begin: Callable[[Span], AsyncGenerator[Event, None]]
) -> AsyncGenerator[Event, None]:
    stages.end()
    async with aclosing(observed(begin(stages.parent), "http", stages.parent)) as counted:
        async for event in counted:
            yield event


async def _stream(
    events: AsyncGenerator[Event | None, None], reply: Reply, untold: Untold, *, marked: bool
) -> AsyncGenerator[bytes, None]:
    async with aclosing(events):
        try:
            async for part in replies.stream(events, reply, untold, marked=marked):
                yield part
        except ClientGoneError:
            return
        except RequestError as error:
            yield replies.sse(error.body())
