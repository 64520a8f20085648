"""A request's sessions as an HTTP answer: one body, or server-sent events."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from functools import partial

from fastapi import Request
from fastapi.responses import JSONResponse, Response
from opentelemetry.trace import Span

from gateway.caller import Caller
from gateway.choices import Told, numbered, together
from gateway.core import Gateway, observed
from gateway.errors import RequestError, invalid
from gateway.events import Event, Mark, Started, Untold
from gateway.generation import Asked, Form, Generation
from gateway.http import headers, replies
from gateway.http.choice import Choice
from gateway.http.disconnect import ClientGoneError, EventStream, until_disconnect
from gateway.http.logprobs import ChoiceLogprobs
from gateway.http.replies import Reply
from gateway.reading import Reader
from paceline.logprobs import NO_LOGPROBS, LogprobsWanted
from paceline.service import spans

# A stream without an event for this long sends a comment, as silent connections are often taken for dead. The
# HTML standard advises this interval. A shorter one would fail benchmarks that count each line as an event.
IDLE_SECONDS = 15.0


@dataclass(frozen=True, slots=True)
class Wanted:
    """What one HTTP request asks for."""

    # `n` for each prompt, those of the first prompt first.
    choices: Sequence[Generation | Asked]
    n: int
    stream: bool
    # Told of each prompt's choices; the likeliest ones.
    best: int
    # Whether log-probabilities are told, or only rank the choices.
    scored: bool
    # Of each prompt: its text, where it was given as text and is told in full.
    prompts: Sequence[str | None]


async def respond(
    gateway: Gateway, request: Request, caller: Caller, wanted: Wanted, stages: spans.Stages
) -> Response:
    """New sessions' answer, whole or streamed, or the rest of a broken stream. Raises `RequestError`.

    `stages`: those of the request's span.
    """
    mark, several = headers.mark(request), len(wanted.choices) > 1
    if mark is not None and wanted.stream:
        if several:
            raise RequestError(
                invalid("invalid_value"),
                "a stream of several choices is not resumed: ask for each session's events",
                "Last-Event-ID",
            )
        return await resume(gateway, request, caller, mark, stages)
    deadline = headers.deadline(request, gateway.request_seconds)
    sessions, prompts = gateway.sessions, gateway.prompts
    choices = numbered(wanted.choices)
    ids = [sessions.new_id() for _ in choices]

    def begin(each: Generation | Asked, span: Span) -> AsyncGenerator[Event, None]:
        detokenizer = prompts.detokenizer(each.form.reading, special=each.form.special_tokens)
        session_id = ids[each.form.index]
        return sessions.generate(each, caller, detokenizer, span, deadline, session_id=session_id)

    events = counted(stages, lambda span: together(choices, lambda each: begin(each, span)))
    told = [
        _choice(gateway, each.form, each.logprobs, wanted.prompts[place // wanted.n], scored=wanted.scored)
        for place, each in enumerate(choices)
    ]
    reply = Reply(told, gateway.model_name, ids, n=wanted.n)
    if isinstance(choices[0], Generation):
        reply.choices[0].seed = choices[0].sampling.seed
    if not wanted.stream:
        return await _whole(until_disconnect(events, request, deadline), reply, wanted.best)
    watched = until_disconnect(events, request, deadline, idle_seconds=IDLE_SECONDS)
    marked = headers.wants_event_ids(request) and not several
    return await streamed(watched, partial(_stream, reply, marked=marked), partial(_head, reply))


async def resume(
    gateway: Gateway, request: Request, caller: Caller, mark: Mark, stages: spans.Stages
) -> Response:
    """The rest of a recorded session's stream. Raises `RequestError`."""
    deadline = headers.deadline(request, gateway.request_seconds)
    sessions = gateway.sessions
    claimed = await sessions.claim(mark.session_id, caller)
    form = claimed.wanted.form
    detokenizer = gateway.prompts.detokenizer(form.reading, special=form.special_tokens)

    def begin(span: Span) -> AsyncGenerator[Event, None]:
        return sessions.resume(claimed, caller, detokenizer, span, deadline)

    events = counted(stages, lambda span: together([claimed.wanted], lambda _: begin(span)))
    # What was told of the prompt came with the first tokens.
    logprobs = replace(claimed.wanted.logprobs, prompt_top=None)
    choice = _choice(gateway, form, logprobs, mark=mark)
    reply = Reply([choice], gateway.model_name, [mark.session_id])
    reply.choices[0].seed = claimed.wanted.sampling.seed
    watched = until_disconnect(events, request, deadline, idle_seconds=IDLE_SECONDS)
    return await streamed(watched, partial(_stream, reply, marked=True), partial(_head, reply))


def _choice(
    gateway: Gateway,
    form: Form,
    wanted: LogprobsWanted,
    prompt: str | None = None,
    *,
    mark: Mark | None = None,
    scored: bool = True,
) -> Choice:
    """`mark`: what the client has of it already. `scored`: whether log-probabilities are told."""
    prompts = gateway.prompts
    text_of = partial(prompts.text_of, special=form.special_tokens)
    choice = Choice(form, prompts.stop_token_ids, prompt, text_of, Untold(mark, Reader(form.reading)))
    if wanted != NO_LOGPROBS:
        choice.logprobs = ChoiceLogprobs(
            wanted, prompts.token_bytes, chat=form.kind == "chat", echo=form.echo, told=scored
        )
        # An echoed prompt's stand with the text's own.
        choice.prompt_scored = wanted.prompt_top is not None and not form.echo
    return choice


async def _whole(watched: AsyncGenerator[Told | None, None], reply: Reply, best: int) -> Response:
    """`best`: choices of each prompt that are told."""
    allowance = None
    try:
        async with aclosing(watched):
            async for told in watched:
                if told is None:
                    continue
                if isinstance(told.event, Started):
                    allowance = told.event.allowance
                reply.take(told)
    except ClientGoneError:
        return Response(status_code=499)
    reply.keep_best(best)
    return JSONResponse(reply.whole(), headers={**reply.headers(), **headers.of_allowance(allowance)})


async def streamed(
    watched: AsyncGenerator[Told | None, None],
    tell: Callable[[AsyncGenerator[Told | None, None]], AsyncGenerator[bytes, None]],
    head: Callable[[Told | None], Mapping[str, str]],
) -> Response:
    """A stream, as `tell` makes it of the events. If no session can begin, the error has its HTTP status.

    `head`: the headers, given what came first; None if nothing has come yet.

    Sessions that wait for long begin their stream with comments; a later refusal then comes as an event.
    """
    try:
        first = await anext(watched)
    except ClientGoneError:
        return Response(status_code=499)
    except BaseException:
        await watched.aclose()
        raise
    begun = first.event if first is not None else None
    allowance = begun.allowance if isinstance(begun, Started) else None
    told = {**head(first), **headers.of_allowance(allowance)}
    return EventStream(tell(_behind(first, watched)), told)


def _head(reply: Reply, first: Told | None) -> dict[str, str]:
    if first is not None and isinstance(first.event, Started):
        reply.choices[first.choice].seed = first.event.seed
    return reply.headers()


async def _behind(
    first: Told | None, rest: AsyncGenerator[Told | None, None]
) -> AsyncGenerator[Told | None, None]:
    async with aclosing(rest):
        yield first
        async for told in rest:
            yield told


async def counted(
    stages: spans.Stages, begin: Callable[[Span], AsyncGenerator[Told, None]]
) -> AsyncGenerator[Told, None]:
    """The events of a request's sessions, which begin within its span; `stages` are the span's and end."""
    stages.end()
    async with aclosing(observed(begin(stages.parent), "http", stages.parent)) as events:
        async for told in events:
            yield told


async def _stream(
    reply: Reply, events: AsyncGenerator[Told | None, None], *, marked: bool
) -> AsyncGenerator[bytes, None]:
    async with aclosing(events):
        try:
            async for part in replies.stream(events, reply, marked=marked):
                yield part
        except ClientGoneError:
            return
        except RequestError as error:
            yield replies.sse(error.body())
