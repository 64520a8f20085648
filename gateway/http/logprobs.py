"""Log-probabilities in OpenAI's forms and vLLM's."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from gateway.events import Chunk
from gateway.token_bytes import TokenBytes
from paceline.logprobs import LogprobsWanted, TokenLogprobs

Scored = Iterable[tuple[int, TokenLogprobs]]


def of_chat(scored: Scored, tokens: TokenBytes) -> dict[str, Any]:
    """`choices[].logprobs` of a chat."""
    content = [
        {
            **_told(token, score.logprob, tokens),
            "top_logprobs": [
                _told(each, logprob, tokens)
                for each, logprob in zip(score.top_ids, score.top_logprobs, strict=True)
            ],
        }
        for token, score in scored
    ]
    return {"content": content, "refusal": None}


def _told(token: int, logprob: float, tokens: TokenBytes) -> dict[str, Any]:
    return {"token": tokens.text(token), "logprob": logprob, "bytes": list(tokens.of(token))}


class CompletionLogprobs:
    """`choices[].logprobs` of a completion, piece by piece: offsets go on from piece to piece."""

    def __init__(self, tokens: TokenBytes) -> None:
        self._tokens = tokens
        self._offset = 0

    def of(self, scored: Scored, *, unscored: Sequence[int] = ()) -> dict[str, Any]:
        """Of the next tokens. `unscored` come first, without log-probability: an echoed text's first."""
        told: dict[str, list[Any]] = {
            "tokens": [],
            "token_logprobs": [],
            "top_logprobs": [],
            "text_offset": [],
        }

        def add(token: int, logprob: float | None, top: dict[str, float] | None) -> None:
            text = self._tokens.text(token)
            told["tokens"].append(text)
            told["token_logprobs"].append(logprob)
            told["top_logprobs"].append(top)
            told["text_offset"].append(self._offset)
            self._offset += len(text)

        for token in unscored:
            add(token, None, None)
        for token, score in scored:
            top: dict[str, float] = {}
            # Two tokens may have one text: the likelier one is told.
            for each, logprob in zip(score.top_ids, score.top_logprobs, strict=True):
                top.setdefault(self._tokens.text(each), logprob)
            top.setdefault(self._tokens.text(token), score.logprob)
            add(token, score.logprob, top)
        return told


def of_prompt(
    prompt_ids: Sequence[int], scores: Sequence[TokenLogprobs], tokens: TokenBytes
) -> list[dict[str, Any] | None]:
    """vLLM's `prompt_logprobs`: by token id, for each position but the first."""
    told: list[dict[str, Any] | None] = [None]
    for token, score in zip(prompt_ids[1:], scores, strict=True):
        ranked = enumerate(zip(score.top_ids, score.top_logprobs, strict=True), 1)
        entries = {each: (logprob, rank) for rank, (each, logprob) in ranked}
        entries.setdefault(token, (score.logprob, score.rank))
        told.append(
            {
                str(each): {"logprob": logprob, "rank": rank, "decoded_token": tokens.text(each)}
                for each, (logprob, rank) in entries.items()
            }
        )
    return told


class ChoiceLogprobs:
    """The log-probabilities of one choice: taken from its chunks, and told piece by piece or at once."""

    def __init__(
        self, wanted: LogprobsWanted, tokens: TokenBytes, *, chat: bool, echo: bool = False, told: bool = True
    ) -> None:
        """`echo`: those of the prompt precede the others. `told` is false where they only rank choices."""
        self._wanted = wanted
        self._tokens = tokens
        self._completion = None if chat else CompletionLogprobs(tokens)
        self._echo = echo
        self._told = told
        self._scored: list[tuple[int, TokenLogprobs]] = []
        self._prompt: tuple[TokenLogprobs, ...] = ()
        # Tokens, the first ones, that have been told.
        self._told_tokens = 0

    def take(self, chunk: Chunk) -> None:
        """Add a session's next chunk."""
        self._scored += zip(chunk.token_ids, chunk.logprobs, strict=False)
        self._prompt = chunk.prompt_logprobs or self._prompt

    def had(self, count: int) -> None:
        """The client of a resumed stream has those of so many more tokens already."""
        self._next(count)

    @property
    def mean(self) -> float:
        """Of all tokens so far."""
        return sum(score.logprob for _, score in self._scored) / max(len(self._scored), 1)

    @property
    def waiting(self) -> bool:
        """Whether there are some to tell."""
        return self._told and self._told_tokens < len(self._scored)

    def block(self, prompt_ids: Sequence[int] = ()) -> dict[str, Any] | None:
        """`choices[].logprobs` of what has not been told; None where there is nothing."""
        if not self._told or self._wanted.top is None:
            return None
        if self._completion is not None and self._echo and prompt_ids:
            scored = [*zip(prompt_ids[1:], self._prompt, strict=True), *self._scored]
            return self._completion.of(scored, unscored=prompt_ids[:1])
        return self._next(len(self._scored) - self._told_tokens) if self.waiting else None

    def prompt(self, prompt_ids: Sequence[int]) -> list[dict[str, Any] | None]:
        """`prompt_logprobs`."""
        return of_prompt(prompt_ids, self._prompt, self._tokens)

    def _next(self, count: int) -> dict[str, Any]:
        scored = self._scored[self._told_tokens : self._told_tokens + count]
        self._told_tokens += len(scored)
        return of_chat(scored, self._tokens) if self._completion is None else self._completion.of(scored)
