"""Answers requests for responses: new ones, kept ones, and those that are to be forgotten."""

from __future__ import annotations

import json
import re
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from functools import partial
from typing import Any

from fastapi import Request
from fastapi.responses import JSONResponse, Response
from opentelemetry.trace import Span
from pydantic import TypeAdapter, ValidationError

from gateway.caller import Caller
from gateway.chat import Chat, ChatTurn
from gateway.chat_template import AS_USUAL
from gateway.choices import Told, together
from gateway.core import Gateway
from gateway.errors import UNKNOWN_RESPONSE, RequestError, invalid
from gateway.events import Event, Started, Untold
from gateway.generation import Asked, Form, Generation
from gateway.http import answers, headers
from gateway.http.asked import handling
from gateway.http.choice import Choice
from gateway.http.disconnect import ClientGoneError, until_disconnect
from gateway.http.replies import COMMENT
from gateway.http.responses.items import InputItem, turns
from gateway.http.responses.output import Json
from gateway.http.responses.reply import ResponseReply, lines
from gateway.http.responses.schema import ResponsesRequest
from gateway.kept import MAX_BYTES
from gateway.reading import Reader
from gateway.request import Terms, served_model
from gateway.tools.demand import demanded
from paceline.service import spans, telemetry

log = telemetry.logger(__name__)

_ID = re.compile(r"resp_[A-Za-z0-9_-]{1,64}")
_ITEMS: TypeAdapter[list[Any]] = TypeAdapter(list[InputItem])


async def respond(
    gateway: Gateway, request: Request, caller: Caller, asked: ResponsesRequest, stages: spans.Stages
) -> Response:
    """A new response, whole or streamed. Raises `RequestError`. `stages`: those of the request's span."""
    if headers.mark(request) is not None:
        raise RequestError(
            invalid("invalid_value"), "a stream of a response is not resumed here", "Last-Event-ID"
        )
    items = [*await _before(gateway, asked, caller), *_given(asked)]
    wanted = _wanted(gateway, asked, items)
    reply = _reply(gateway, asked, wanted.form, caller, items)
    deadline = headers.deadline(request, gateway.request_seconds)
    detokenizer = gateway.prompts.detokenizer(wanted.form.reading, special=wanted.form.special_tokens)

    def begin(span: Span, each: Generation | Asked) -> AsyncGenerator[Event, None]:
        sessions = gateway.sessions
        return sessions.generate(each, caller, detokenizer, span, deadline, session_id=reply.session_id)

    events = answers.counted(stages, lambda span: together([wanted], partial(begin, span)))
    if not asked.stream:
        return await _whole(until_disconnect(events, request, deadline), reply)
    watched = until_disconnect(events, request, deadline, idle_seconds=answers.IDLE_SECONDS)
    return await answers.streamed(watched, partial(_stream, reply), partial(_head, reply))


def _head(reply: ResponseReply, first: Told | None) -> dict[str, str]:
    seed = first.event.seed if first is not None and isinstance(first.event, Started) else None
    return headers.of_sessions([reply.session_id], reply.choice.seed if seed is None else seed)


async def kept(gateway: Gateway, response_id: str, caller: Caller) -> Json:
    """A kept response. Raises `RequestError`."""
    body: Json = (await _record(gateway, response_id, caller, "response_id"))["response"]
    return body


async def forget(gateway: Gateway, response_id: str, caller: Caller) -> Json:
    """Forget a kept response. Raises `RequestError`."""
    await _record(gateway, response_id, caller, "response_id")
    await gateway.kept.forget(response_id)
    return {"id": response_id, "object": "response", "deleted": True}


async def _record(gateway: Gateway, response_id: str, caller: Caller, param: str) -> Json:
    unknown = RequestError(UNKNOWN_RESPONSE, f"no response {response_id[:80]!r} of yours is kept", param)
    text = await gateway.kept.get(response_id) if _ID.fullmatch(response_id) else None
    if text is None:
        raise unknown
    record: Json = json.loads(text)
    if record["owner"] != caller.id:
        raise unknown
    return record


async def _before(gateway: Gateway, asked: ResponsesRequest, caller: Caller) -> list[Json]:
    """The items of the conversation that the request goes on with."""
    if asked.previous_response_id is None:
        return []
    record = await _record(gateway, asked.previous_response_id, caller, "previous_response_id")
    items: list[Json] = record["items"]
    return items


def _given(asked: ResponsesRequest) -> list[Json]:
    """The request's own items, as JSON."""
    if isinstance(asked.input, str):
        return [{"type": "message", "role": "user", "content": asked.input}]
    return [item.model_dump(mode="json", exclude_none=True) for item in asked.input]


def _wanted(gateway: Gateway, asked: ResponsesRequest, items: list[Json]) -> Generation | Asked:
    served = served_model(gateway.sessions.fleet.verifier_views(), gateway.model_name, asked.model)
    use = asked.tool_use
    try:
        said = turns(_ITEMS.validate_python(items))
    except ValidationError:
        raise RequestError(
            UNKNOWN_RESPONSE, "what is kept of that response cannot be read here", "previous_response_id"
        ) from None
    before = [ChatTurn("system", asked.instructions)] if asked.instructions else []
    chat = Chat([*before, *said], use.offered())
    rendering = gateway.prompts.rendering(AS_USUAL, asked.reasoning.effort if asked.reasoning else None)
    reading = gateway.prompts.reading(chat, use, rendering)
    form = Form(
        "chat",
        created=int(time.time()),
        special_tokens=asked.skip_special_tokens is False,
        stop_in_text=bool(asked.include_stop_str_in_output),
        reading=reading,
    )
    sampling = demanded(asked.sampling(asked.max_output_tokens), use, reading)
    terms = Terms(
        sampling,
        served,
        gateway.prompts.stop_token_ids,
        form,
        "input",
        "max_output_tokens",
        gateway.prompts.bad_words(sampling.bad_words),
        handling(gateway, asked),
    )
    return terms.ask(gateway.prompts.from_chat(chat, rendering))


def _reply(
    gateway: Gateway, asked: ResponsesRequest, form: Form, caller: Caller, items: list[Json]
) -> ResponseReply:
    async def keep(body: Json) -> bool:
        record = {"owner": caller.id, "items": [*items, *body["output"]], "response": body}
        text = json.dumps(record).encode()
        if len(text) > MAX_BYTES:
            log.info("a response is too long to be kept", bytes=len(text))
            return False
        try:
            await gateway.kept.put(body["id"], text)
        except RequestError as error:
            log.warning("a response is not kept", why=error.message)
            return False
        return True

    choice = Choice(form, gateway.prompts.stop_token_ids, untold=Untold(reader=Reader(form.reading)))
    session_id = gateway.sessions.new_id()
    stored = asked.store is not False
    return ResponseReply(asked, choice, gateway.model_name, session_id, gateway.prompts.count, keep, stored)


async def _whole(watched: AsyncGenerator[Told | None, None], reply: ResponseReply) -> Response:
    allowance = None
    try:
        async with aclosing(watched):
            async for told in watched:
                if told is None:
                    continue
                if isinstance(told.event, Started):
                    allowance = told.event.allowance
                await reply.take(told.event)
    except ClientGoneError:
        return Response(status_code=499)
    begun = headers.of_sessions([reply.session_id], reply.choice.seed)
    return JSONResponse(reply.body(), headers={**begun, **headers.of_allowance(allowance)})


async def _stream(
    reply: ResponseReply, events: AsyncGenerator[Told | None, None]
) -> AsyncGenerator[bytes, None]:
    async with aclosing(events):
        try:
            async for told in events:
                if told is None:
                    yield COMMENT
                    continue
                for line in lines(await reply.take(told.event)):
                    yield line
        except ClientGoneError:
            return
        except RequestError as error:
            for line in lines(reply.fail(error)):
                yield line
