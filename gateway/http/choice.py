"""One choice of an OpenAI reply, from its session's events."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from gateway.events import Chunk, Event, Finished, Mark, Started
from gateway.generation import Form


@dataclass(slots=True)
class Choice:
    """What is known of one choice: fixed facts, and what its session's events add to them."""

    form: Form
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

    @property
    def end(self) -> Finished:
        """Its session's end; only where that has come."""
        assert self.finished is not None
        return self.finished

    def mark(self) -> Mark:
        """The client's mark when it has all events that were added."""
        return Mark(self.session_id, self.prompt_tokens + self.completion_tokens, len(self.text))

    def receipt(self) -> dict[str, Any]:
        """Extension block `paceline`: what the session cost and what speculation gave it."""
        receipt = self.end.receipt
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
        """The choice of a response that is not streamed."""
        told = self._told(str(self.end.reason))
        if self.form.kind == "chat":
            told["message"] = {"role": "assistant", "content": self.text, "refusal": None}
        else:
            told["text"] = self.text
        return told

    def piece(
        self, text: str | None, *, first: bool = False, finish_reason: str | None = None
    ) -> dict[str, Any]:
        """The choice of one streamed chunk."""
        told = self._told(finish_reason)
        if self.form.kind == "chat":
            delta: dict[str, Any] = {"role": "assistant", "content": ""} if first else {}
            if text:
                delta["content"] = text
            told["delta"] = delta
        else:
            told["text"] = text or ""
        return told

    def _told(self, finish_reason: str | None) -> dict[str, Any]:
        return {"index": self.form.index, "finish_reason": finish_reason, "logprobs": None}
