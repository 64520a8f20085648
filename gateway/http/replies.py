"""OpenAI's response bodies from the events of a request's choices."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from typing import Any

from gateway.choices import Told
from gateway.events import Chunk, Finished, Mark, Started
from gateway.http import headers, receipts
from gateway.http.choice import Choice
from paceline import __version__
from paceline.session import PREDICTION

# Characters that JSON does not escape and many clients take for line ends.
_LINE_ENDS = {ord(each): f"\\u{ord(each):04x}" for each in "\x85\u2028\u2029"}
# What a stream says that has nothing to say.
COMMENT = b": waiting\n\n"


class Reply:
    """One response: its choices in the order of their indices."""

    def __init__(
        self, choices: Sequence[Choice], model: str, session_ids: Sequence[str], *, n: int = 1
    ) -> None:
        """`choices`: `n` for each prompt. `session_ids`: of the choices."""
        # Of all sessions; fewer may be told.
        self.choices = choices
        self._told = list(choices)
        self.form = choices[0].form
        self._model = model
        self._ids = session_ids
        self._n = n

    def take(self, told: Told) -> tuple[Choice, Chunk | None]:
        """Add an event; returns the choice that it is of, and what of it is to be told."""
        choice = self.choices[told.choice]
        return choice, choice.take(told.event)

    def headers(self) -> dict[str, str]:
        """Whose reply it is, for the response's head."""
        return headers.of_sessions(self._ids, self.choices[0].seed)

    def _head(self, object_name: str) -> dict[str, Any]:
        prefix = "chatcmpl-" if self.form.kind == "chat" else "cmpl-"
        return {
            "id": prefix + self._ids[0],
            "object": object_name,
            "created": self.form.created,
            "model": self._model,
            "system_fingerprint": f"paceline-{__version__}",
        }

    def usage(self) -> dict[str, Any]:
        """OpenAI's usage block: each prompt once, and what came of the client's own prediction."""
        prompt = sum(choice.prompt_tokens for choice in self.choices[:: self._n])
        completion = sum(choice.completion_tokens for choice in self.choices)
        receipts = [choice.finished.receipt for choice in self.choices if choice.finished]
        predicted = [each for receipt in receipts for each in receipt.sources if each.source == PREDICTION]
        accepted = sum(each.accepted_tokens for each in predicted)
        drafted = sum(each.drafted_tokens for each in predicted)
        return {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
            "completion_tokens_details": {
                "accepted_prediction_tokens": accepted,
                "rejected_prediction_tokens": drafted - accepted,
            },
        }

    def receipt(self) -> dict[str, Any]:
        """Extension block `paceline`: the one choice's receipt, or a list of those of all."""
        receipts = [choice.receipt() for choice in self.choices]
        return receipts[0] if len(receipts) == 1 else {"choices": receipts}

    def whole(self) -> dict[str, Any]:
        """The body of a response that is not streamed."""
        name = "chat.completion" if self.form.kind == "chat" else "text_completion"
        choices = [choice.whole() | {"index": place} for place, choice in enumerate(self._told)]
        told = {"usage": self.usage(), "paceline": self.receipt(), **self.metrics()}
        first = self._told[0]
        if first.logprobs is not None and first.prompt_scored and self.form.kind == "chat":
            told["prompt_logprobs"] = first.logprobs.prompt(first.prompt_ids)
        return {**self._head(name), "choices": choices, **told, **self._prompt_ids(first)}

    def keep_best(self, n: int) -> None:
        """Tell only each prompt's `n` choices of the highest mean log-probability, the best first."""
        if n < self._n:
            starts = range(0, len(self.choices), self._n)
            self._told = [
                choice
                for start in starts
                for choice in sorted(self.choices[start : start + self._n], key=_unlikeliness)[:n]
            ]

    def metrics(self) -> dict[str, Any]:
        """vLLM's form of what speculation brought to the choices that have ended."""
        ended = (choice.finished for choice in self.choices if choice.finished)
        return {"metrics": receipts.metrics(finished.receipt for finished in ended)}

    def first(self, choice: Choice) -> dict[str, Any]:
        """A choice's first chunk, before its text."""
        return self.piece(choice.piece(first=True)) | self._prompt_ids(choice)

    def _prompt_ids(self, choice: Choice) -> dict[str, Any]:
        """vLLM's, of a chat; those of plain prompts are told with their choices."""
        wanted = self.form.token_ids and self.form.kind == "chat"
        return {"prompt_token_ids": choice.prompt_ids} if wanted else {}

    def piece(self, *choices: dict[str, Any]) -> dict[str, Any]:
        """One streamed chunk."""
        name = "chat.completion.chunk" if self.form.kind == "chat" else "text_completion"
        usage = {"usage": self.usage()} if self.form.continuous_usage else {}
        return {**self._head(name), "choices": choices, **usage}


def _unlikeliness(choice: Choice) -> float:
    return 0.0 if choice.logprobs is None else -choice.logprobs.mean


async def stream(events: AsyncIterator[Told | None], reply: Reply, *, marked: bool) -> AsyncIterator[bytes]:
    """A reply as server-sent events: what the client does not have, and a comment for each None.

    `marked`: events have their marks as ids. Only clients that ask get
    ids, as some parsers fail on them, and only for one choice: a mark is one session's.
    """

    def event_of(choice: Choice, body: dict[str, Any]) -> bytes:
        return sse(body, choice.mark() if marked else None)

    async for told in events:
        if told is None:
            yield COMMENT
            continue
        (choice, new), form = reply.take(told), reply.form
        begins = isinstance(told.event, Started) and choice.untold.everything
        if begins and (form.kind == "chat" or form.echo or form.token_ids):
            yield event_of(choice, reply.first(choice))
        if new is not None and (new.parts or choice.has_scores):
            piece = reply.piece(choice.piece(new.parts))
            yield event_of(choice, piece if new.durable else {**piece, "paceline": {"durable": False}})
        if isinstance(told.event, Finished):
            last = reply.piece(choice.piece(last=True))
            ended = not form.include_usage and all(each.finished for each in reply.choices)
            metrics = reply.metrics() if ended else {}
            yield event_of(choice, {**last, "paceline": choice.receipt(), **metrics})
    if reply.form.include_usage:
        yield event_of(reply.choices[-1], {**reply.piece(), "usage": reply.usage(), **reply.metrics()})
    yield b"data: [DONE]\n\n"


def sse(body: dict[str, Any], mark: Mark | None = None) -> bytes:
    """One server-sent event. With its id a client can resume after it."""
    data = json.dumps(body, ensure_ascii=False, separators=(",", ":")).translate(_LINE_ENDS)
    head = "" if mark is None else f"id: {mark}\n"
    return f"{head}data: {data}\n\n".encode()
