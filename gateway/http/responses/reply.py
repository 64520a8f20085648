"""The body of a response, and its stream of events."""

from __future__ import annotations

import json
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from gateway.errors import RequestError
from gateway.events import Event, Finished, Started
from gateway.http.choice import Choice
from gateway.http.replies import sse
from gateway.http.responses.output import Json, Output
from gateway.http.responses.schema import ResponsesRequest
from paceline.session import FinishReason

_STATUS = {
    FinishReason.STOP: "completed",
    FinishReason.LENGTH: "incomplete",
    FinishReason.CANCELLED: "cancelled",
}


@dataclass(slots=True)
class ResponseReply:
    """One response: what was asked, and what its session's events add."""

    asked: ResponsesRequest
    choice: Choice
    model: str
    session_id: str
    # Tokens of a text, for usage.
    count: Callable[[str], int]
    # Keeps the response; returns whether that worked.
    keep: Callable[[Json], Awaitable[bool]]
    stored: bool
    output: Output = field(init=False)
    status: str = "in_progress"
    error: Json | None = None
    _sequence: int = 0

    def __post_init__(self) -> None:
        self.output = Output(self.session_id)

    async def take(self, event: Event) -> list[Json]:
        """Add an event of the session; returns the events of the stream."""
        new = self.choice.take(event)
        told: list[Json] = []
        if isinstance(event, Started):
            told += [self._whole_event("response.created"), self._whole_event("response.in_progress")]
        if new is not None:
            told += self.output.take(new.parts)
        if isinstance(event, Finished):
            self.status = _STATUS[event.reason]
            told += self.output.end("completed" if self.status == "completed" else "incomplete")
            self.stored = self.stored and await self.keep(self.body())
            last = "completed" if self.status == "completed" else "incomplete"
            told.append(self._whole_event(f"response.{last}"))
        return [self._numbered(each) for each in told]

    def fail(self, error: RequestError) -> list[Json]:
        """The events of a failure within the stream."""
        self.status, self.stored = "failed", False
        self.error = {"code": error.kind.code or error.kind.type, "message": error.message}
        told: Iterable[Json] = [*self.output.close("incomplete"), self._whole_event("response.failed")]
        return [self._numbered(each) for each in told]

    def body(self) -> Json:
        """The response as it stands."""
        asked, sampling = self.asked, self.asked.sampling(None)
        ended = self.choice.finished is not None
        return {
            "id": f"resp_{self.session_id}",
            "object": "response",
            "created_at": self.choice.form.created,
            "completed_at": int(time.time()) if self.status == "completed" else None,
            "status": self.status,
            "background": False,
            "error": self.error,
            "incomplete_details": {"reason": "max_output_tokens"} if self.status == "incomplete" else None,
            "instructions": asked.instructions,
            "max_output_tokens": asked.max_output_tokens,
            "max_tool_calls": None,
            "model": self.model,
            "output": self.output.items,
            "parallel_tool_calls": asked.parallel_tool_calls is not False,
            "previous_response_id": asked.previous_response_id,
            "reasoning": {"effort": asked.reasoning.effort if asked.reasoning else None, "summary": None},
            "service_tier": "default",
            "store": self.stored,
            "temperature": 1.0 if sampling.temperature is None else sampling.temperature,
            "text": {"format": _form(asked)},
            "tool_choice": _said(asked.tool_choice) or "auto",
            "tools": [tool.model_dump() for tool in asked.tools or ()],
            "top_logprobs": 0,
            "top_p": 1.0 if sampling.top_p is None else sampling.top_p,
            "truncation": "disabled",
            "usage": self._usage() if ended else None,
            "user": asked.user,
            "metadata": asked.metadata or {},
            **({"paceline": self.choice.receipt()} if ended else {}),
        }

    def _usage(self) -> Json:
        given, made = self.choice.prompt_tokens, self.choice.completion_tokens
        thoughts = self.output.reasoning
        return {
            "input_tokens": given,
            "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
            "output_tokens": made,
            "output_tokens_details": {"reasoning_tokens": min(made, self.count(thoughts)) if thoughts else 0},
            "total_tokens": given + made,
        }

    def _whole_event(self, kind: str) -> Json:
        return {"type": kind, "response": json.loads(json.dumps(self.body()))}

    def _numbered(self, event: Json) -> Json:
        numbered = {**event, "sequence_number": self._sequence}
        self._sequence += 1
        return numbered


def _form(asked: ResponsesRequest) -> Json:
    given = asked.text.format if asked.text else None
    if given is None:
        return {"type": "text"}
    said: Json = given.model_dump(by_alias=True, exclude_none=True)
    return said


def _said(choice: Any) -> Any:
    return choice if choice is None or isinstance(choice, str) else choice.model_dump()


def lines(events: Iterable[Json]) -> Iterator[bytes]:
    """Server-sent events, each with its type as its name."""
    for event in events:
        yield f"event: {event['type']}\n".encode() + sse(event)
