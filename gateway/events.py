"""The events of a session that its client is sent, whichever face it uses."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from gateway.errors import RequestError, invalid
from paceline.logprobs import TokenLogprobs
from paceline.session import FinishReason, Receipt


@dataclass(frozen=True, slots=True)
class Allowance:
    """What a key has left of its tokens per minute, and when its bucket is full again."""

    limit: int
    left: int
    full_in_seconds: float

    def less(self, tokens: int) -> Allowance:
        """The allowance after `tokens` more are used."""
        return Allowance(self.limit, self.left - tokens, self.full_in_seconds + tokens * 60 / self.limit)


@dataclass(frozen=True, slots=True)
class Started:
    """First event: the session is recorded, and a verifier has opened it."""

    session_id: str
    seed: int
    prompt_tokens: int
    prompt_ids: tuple[int, ...] = ()
    # What its key has left, if it is limited.
    allowance: Allowance | None = None


@dataclass(frozen=True, slots=True)
class Chunk:
    """New tokens, and the text that is final with them."""

    text: str
    position: int
    token_ids: tuple[int, ...]
    accepted: int
    # Whether a durable store has the tokens.
    durable: bool
    # Of each token, where they are wanted.
    logprobs: tuple[TokenLogprobs, ...] = ()
    # Of the prompt's tokens from the second on, with the session's first tokens.
    prompt_logprobs: tuple[TokenLogprobs, ...] = ()


@dataclass(frozen=True, slots=True)
class Finished:
    """Last event."""

    reason: FinishReason
    receipt: Receipt
    # The stop string or stop id that ended the text.
    stop: str | int | None = None


Event = Started | Chunk | Finished

_NUMBER = re.compile(r"[0-9]{1,12}")


@dataclass(frozen=True, slots=True)
class Mark:
    """How much of a session a client has. As text it is the id of a server-sent event.

    Text lags behind the tokens, as it waits for whole characters and for stop strings, and by how much
    depends on how the tokens came. So both are counted.
    """

    session_id: str
    # Absolute position (index in prompt + committed) of the first id that the client does not have.
    position: int = 0
    # Characters (code points) that the client has.
    characters: int = 0

    def __str__(self) -> str:
        return f"{self.session_id}:{self.position}:{self.characters}"

    @classmethod
    def parse(cls, text: str) -> Mark:
        """The mark a client sends back. Raises `RequestError`."""
        parts = text.split(":")
        if len(parts) != 3 or not all(_NUMBER.fullmatch(part) for part in parts[1:]):
            raise RequestError(
                invalid("invalid_value"),
                "Last-Event-ID must be the id of an event of the stream that broke",
                "Last-Event-ID",
            )
        return cls(parts[0], int(parts[1]), int(parts[2]))


class Untold:
    """Drops from a session's chunks what a client that has come to a mark has already."""

    def __init__(self, mark: Mark | None = None) -> None:
        """Without a mark nothing is dropped."""
        self._position = mark.position if mark else 0
        self._characters = mark.characters if mark else 0
        self.everything = not (self._position or self._characters)

    def of(self, chunk: Chunk) -> Chunk | None:
        """The new part of the session's next chunk; None if there is none. Call it for each chunk."""
        known = min(max(0, self._position - chunk.position), len(chunk.token_ids))
        text = chunk.text[self._characters :]
        self._characters = max(0, self._characters - len(chunk.text))
        token_ids = chunk.token_ids[known:]
        if not text and not token_ids:
            return None
        return replace(
            chunk,
            text=text,
            position=chunk.position + known,
            token_ids=token_ids,
            accepted=max(0, chunk.accepted - known),
            logprobs=chunk.logprobs[known:],
        )
