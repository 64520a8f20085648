"""OpenAI's response bodies from a session's events."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from gateway.events import Chunk, Event, Finished, Mark, Started, Untold
from gateway.generation import Form
from paceline import __version__

# Characters that JSON does not escape and many clients take for line ends.
_LINE_ENDS = {ord(each): f"\\u{ord(each):04x}" for each in "\x85\u2028\u2029"}
_COMMENT = b": waiting\n\n"


@dataclass(slots=True)
class Reply:
    """One response: fixed facts, and what the events add to it."""

    form: Form
    model: str
    session_id: str = ""
    seed: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    text: str = ""
    durable: bool = True
    finished: Finished | None = None

    def take(self, event: Event) -> None:
        """Add an event. A session's first one is `Started`."""
        if isinstance(event, Started):
            self.session_id, self.seed, self.prompt_tokens = event.session_id, event.seed, event.prompt_tokens
        elif not self.session_id:
            raise ValueError(f"a session begins with {type(event).__name__}")
        elif isinstance(event, Chunk):
            self.text += event.text
            self.completion_tokens += len(event.token_ids)
            self.durable = event.durable
        else:
            self.finished = event

    def mark(self) -> Mark:
        """The client's mark when it has all events that were added."""
        return Mark(self.session_id, self.prompt_tokens + self.completion_tokens, len(self.text))

    def _head(self, object_name: str) -> dict[str, Any]:
        prefix = "chatcmpl-" if self.form.kind == "chat" else "cmpl-"
        return {
            "id": prefix + self.session_id,
            "object": object_name,
            "created": self.form.created,
            "model": self.model,
            "system_fingerprint": f"paceline-{__version__}",
        }

    def usage(self) -> dict[str, Any]:
        """OpenAI's usage block, with accepted drafts as accepted prediction tokens."""
        accepted = self.finished.receipt.accepted_tokens if self.finished else 0
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
            "completion_tokens_details": {"accepted_prediction_tokens": accepted},
        }

    def receipt(self) -> dict[str, Any]:
        """Extension block `paceline`: what the session cost and what speculation gave it."""
        assert self.finished is not None
        receipt = self.finished.receipt
        return {
            "session_id": self.session_id,
            "seed": self.seed,
            "steps": receipt.steps,
            "acceptance_length": round(receipt.acceptance_length, 3),
            "drafted_tokens": receipt.drafted_tokens,
            "accepted_tokens": receipt.accepted_tokens,
            "sources": {
                each.name: {"drafted_tokens": each.drafted_tokens, "accepted_tokens": each.accepted_tokens}
                for each in receipt.sources
            },
            "durable": self.durable,
        }

    def whole(self) -> dict[str, Any]:
        """The body of a response that is not streamed."""
        assert self.finished is not None
        choice: dict[str, Any] = {"index": 0, "finish_reason": str(self.finished.reason), "logprobs": None}
        if self.form.kind == "chat":
            choice["message"] = {"role": "assistant", "content": self.text, "refusal": None}
        else:
            choice["text"] = self.text
        name = "chat.completion" if self.form.kind == "chat" else "text_completion"
        return {**self._head(name), "choices": [choice], "usage": self.usage(), "paceline": self.receipt()}

    def piece(
        self, text: str | None, *, first: bool = False, finish_reason: str | None = None
    ) -> dict[str, Any]:
        """One streamed chunk."""
        choice: dict[str, Any] = {"index": 0, "finish_reason": finish_reason, "logprobs": None}
        if self.form.kind == "chat":
            delta: dict[str, Any] = {"role": "assistant", "content": ""} if first else {}
            if text:
                delta["content"] = text
            choice["delta"] = delta
        else:
            choice["text"] = text or ""
        name = "chat.completion.chunk" if self.form.kind == "chat" else "text_completion"
        usage = {"usage": self.usage()} if self.form.continuous_usage else {}
        return {**self._head(name), "choices": [choice], **usage}


async def stream(
    events: AsyncIterator[Event | None], reply: Reply, untold: Untold, *, marked: bool
) -> AsyncIterator[bytes]:
    """A session as server-sent events: what the client does not have, and a comment for each None.

    `marked`: events have their marks as ids. Only clients that ask get ids, as some parsers fail on them.
    """

    def event_of(body: dict[str, Any]) -> bytes:
        return sse(body, reply.mark() if marked else None)

    async for event in events:
        if event is None:
            yield _COMMENT
            continue
        reply.take(event)
        if isinstance(event, Started):
            if untold.everything and reply.form.kind == "chat":
                yield event_of(reply.piece(None, first=True))
        elif isinstance(event, Chunk) and (new := untold.of(event)) is not None and new.text:
            piece = reply.piece(new.text)
            yield event_of(piece if new.durable else {**piece, "paceline": {"durable": False}})
    assert reply.finished is not None
    last = reply.piece(None, finish_reason=str(reply.finished.reason))
    yield event_of({**last, "paceline": reply.receipt()})
    if reply.form.include_usage:
        yield event_of({**reply.piece(None), "choices": [], "usage": reply.usage()})
    yield b"data: [DONE]\n\n"


def sse(body: dict[str, Any], mark: Mark | None = None) -> bytes:
    """One server-sent event. With its id a client can resume after it."""
    data = json.dumps(body, ensure_ascii=False, separators=(",", ":")).translate(_LINE_ENDS)
    head = "" if mark is None else f"id: {mark}\n"
    return f"{head}data: {data}\n\n".encode()
