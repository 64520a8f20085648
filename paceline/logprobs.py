"""Log-probabilities of a text's tokens: which ones a client wants, their values, and their packed form."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

# Most of the likeliest tokens that a client may ask for at each position; OpenAI's bound.
MAX_TOP_LOGPROBS = 20
# OpenAI's number for what is as good as impossible. JSON has none for minus infinity.
LOWEST = -9999.0

_OWN = struct.Struct("<If")
_LIKELY = struct.Struct("<If")


@dataclass(frozen=True, slots=True)
class LogprobsWanted:
    """The log-probabilities that a session's client wants; each None: none."""

    # Of each generated token, and of so many of the likeliest ones at its position.
    top: int | None = None
    # Of the prompt's tokens, all but the first.
    prompt_top: int | None = None

    @property
    def width(self) -> int:
        """Bytes of one generated token's packed log-probabilities."""
        return 0 if self.top is None else packed_width(self.top)


NO_LOGPROBS = LogprobsWanted()


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """The log-probability of a text's token, and those of the likeliest tokens at its position.

    Natural logarithms of the target's own distribution: the softmax of its logits, before anything that a
    request asks for has changed them.
    """

    logprob: float
    # 1 is the likeliest token. Equals share a rank.
    rank: int
    # The likeliest first, ties by the lowest id. Whether the token is among them is left to its rank.
    top_ids: tuple[int, ...] = ()
    top_logprobs: tuple[float, ...] = ()


def packed_width(top: int) -> int:
    """Bytes of one token with `top` likeliest ones."""
    return _OWN.size + top * _LIKELY.size


def pack(tokens: Iterable[TokenLogprobs]) -> bytes:
    """Little-endian, in single precision, `packed_width` bytes for each token."""
    parts: list[bytes] = []
    for token in tokens:
        parts.append(_OWN.pack(token.rank, token.logprob))
        parts += map(_LIKELY.pack, token.top_ids, token.top_logprobs)
    return b"".join(parts)


def unpack(packed: bytes, top: int) -> list[TokenLogprobs]:
    """The tokens of `pack`. Raises `ValueError` for a part of a token."""
    width = packed_width(top)
    if len(packed) % width:
        raise ValueError(f"{len(packed)} bytes are not log-probabilities of {width} bytes a token")
    tokens: list[TokenLogprobs] = []
    for start in range(0, len(packed), width):
        rank, logprob = _OWN.unpack_from(packed, start)
        likely: Sequence[tuple[int, float]] = list(
            _LIKELY.iter_unpack(packed[start + _OWN.size : start + width])
        )
        ids, logprobs = zip(*likely, strict=True) if likely else ((), ())
        tokens.append(TokenLogprobs(logprob, rank, tuple(ids), tuple(logprobs)))
    return tokens
