"""Log-probabilities in OpenAI's forms and vLLM's."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from gateway.token_bytes import TokenBytes
from paceline.logprobs import TokenLogprobs

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
