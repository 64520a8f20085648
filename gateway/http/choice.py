"""One choice of an OpenAI reply, from its session's events."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from gateway.events import Chunk, Event, Finished, Mark, Started, Untold
from gateway.generation import Form
from gateway.http import receipts, said
from gateway.http.logprobs import ChoiceLogprobs
from gateway.parts import Part


@dataclass(slots=True)
class Choice:
    """What is known of one choice: fixed facts, and what its session's events add to them."""

    form: Form
    # Ids that end a text of the model: nobody needs to be told of these.
    eos: frozenset[int] = frozenset()
    # What is echoed: the prompt as it was given, or else the text of its ids.
    prompt: str | None = None
    text_of: Callable[[Sequence[int]], str] | None = None
    # What its client has not been told.
    untold: Untold = field(default_factory=Untold)
    echoed: str = ""
    session_id: str = ""
    # None until it is known.
    seed: int | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    # What the client has been told, or is to be told when all is there.
    parts: list[Part] = field(default_factory=list)
    durable: bool = True
    finished: Finished | None = None
    prompt_ids: tuple[int, ...] = ()
    token_ids: list[int] = field(default_factory=list)
    # How many of `token_ids` were streamed.
    streamed_ids: int = 0
    # None where nobody wants them.
    logprobs: ChoiceLogprobs | None = None
    # Those of the prompt are told beside the choice's own.
    prompt_scored: bool = False

    def take(self, event: Event) -> Chunk | None:
        """Add an event; returns what of it is to be told, if there is anything.

        A session's first one is `Started`.
        """
        new = None
        if isinstance(event, Started):
            self.session_id, self.seed, self.prompt_tokens = event.session_id, event.seed, event.prompt_tokens
            self.prompt_ids = event.prompt_ids
            if self.form.echo:
                self.echoed = self._prompt_text()
        elif not self.session_id:
            raise ValueError(f"a session begins with {type(event).__name__}")
        elif isinstance(event, Chunk):
            new = self.untold.of(event)
            # What the client of a resumed stream has already.
            had = len(event.token_ids) - len(new.token_ids if new else ())
            self.completion_tokens += len(event.token_ids)
            self.durable = event.durable
            if self.form.token_ids:
                self.token_ids += event.token_ids
                self.streamed_ids += had
            if self.logprobs is not None:
                self.logprobs.take(event)
                self.logprobs.had(had)
        else:
            new = self.untold.rest()
            self.finished = event
        self.parts += new.parts if new is not None else ()
        return new

    @property
    def has_scores(self) -> bool:
        """Whether there are log-probabilities that have not been streamed."""
        return self.logprobs is not None and self.logprobs.waiting

    @property
    def end(self) -> Finished:
        """Its session's end; only where that has come."""
        assert self.finished is not None
        return self.finished

    def mark(self) -> Mark:
        """The client's mark when it has all events that were added."""
        return Mark(self.session_id, self.prompt_tokens + self.completion_tokens, self.untold.characters)

    def receipt(self) -> dict[str, Any]:
        """Extension block `paceline`: what the session cost and what speculation gave it."""
        return {
            "session_id": self.session_id,
            "seed": self.seed,
            **receipts.block(self.end.receipt),
            "durable": self.durable,
        }

    def whole(self) -> dict[str, Any]:
        """The choice of a response that is not streamed."""
        told = self._told(self._finish_reason()) | self._stop_reason()
        if self.form.kind == "chat":
            told["message"] = said.message(self.parts, self.session_id)
        else:
            told["text"] = self.echoed + said.content(self.parts)
        if self.form.token_ids:
            told["token_ids"] = self.token_ids
            if self.form.kind == "text":
                told["prompt_token_ids"] = self.prompt_ids
        if self.logprobs is not None:
            told["logprobs"] = self.logprobs.block(self.prompt_ids)
            if self.prompt_scored and self.form.kind == "text":
                told["prompt_logprobs"] = self.logprobs.prompt(self.prompt_ids)
        return told

    def piece(self, parts: Sequence[Part] = (), *, first: bool = False, last: bool = False) -> dict[str, Any]:
        """The choice of one streamed chunk; the `last` one has the finish reason."""
        told = self._told(self._finish_reason() if last else None)
        if last:
            told |= self._stop_reason()
        if self.logprobs is not None:
            told["logprobs"] = self.logprobs.block()
        if self.form.token_ids:
            told["token_ids"] = self.token_ids[self.streamed_ids :]
            self.streamed_ids = len(self.token_ids)
            if first and self.form.kind == "text":
                told["prompt_token_ids"] = self.prompt_ids
        if self.form.kind == "chat":
            begin = {"role": "assistant", "content": ""} if first else {}
            told["delta"] = begin | said.delta(parts, self.session_id)
        else:
            told["text"] = self.echoed if first else said.content(parts)
        return told

    def _prompt_text(self) -> str:
        if self.prompt is not None or self.text_of is None:
            return self.prompt or ""
        return self.text_of(self.prompt_ids)

    def _finish_reason(self) -> str:
        return said.finish_reason(self.end.reason, called=self.untold.called)

    def _stop_reason(self) -> dict[str, Any]:
        """vLLM's: the stop string or stop id that the request named."""
        stop = self.end.stop
        return {"stop_reason": None if stop in self.eos else stop}

    def _told(self, finish_reason: str | None) -> dict[str, Any]:
        return {"index": self.form.index, "finish_reason": finish_reason, "logprobs": None}
