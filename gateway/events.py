"""The events of a session that its client is sent, whichever face it uses."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from gateway.errors import RequestError, invalid
from gateway.parts import Part, Said
from gateway.reading import Reader
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
    # What the client is told with it, and how many characters of the session's text that accounts for.
    parts: tuple[Part, ...] = ()
    characters: int = 0


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
    # Characters (code points) of the session's text that the client has had read.
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
    """What of a session's chunks is new to a client that has come to a mark, read as the client wants it."""

    def __init__(self, mark: Mark | None = None, reader: Reader | None = None) -> None:
        """Without a mark everything is new. Without a reader the text is all content."""
        self._position = mark.position if mark else 0
        self._had = mark.characters if mark else 0
        self._reader = reader
        # Characters of the session's text that have come.
        self._came = 0
        # Characters that the client has when it has all that was returned.
        self.characters = self._had
        self._durable = True
        self._end = self._position
        self.everything = not (self._position or self._had)

    @property
    def called(self) -> bool:
        """Whether the text so far has called a tool."""
        return self._reader is not None and self._reader.called

    def of(self, chunk: Chunk) -> Chunk | None:
        """The new part of the session's next chunk; None if there is none. Call it for each chunk."""
        known = min(max(0, self._position - chunk.position), len(chunk.token_ids))
        had = min(max(0, self._had - self._came), len(chunk.text))
        self._came += len(chunk.text)
        self._durable, self._end = chunk.durable, chunk.position + len(chunk.token_ids)
        if self._reader is not None:
            self._reader.push(chunk.text[:had])
        text, token_ids = chunk.text[had:], chunk.token_ids[known:]
        parts = self._read(text)
        if not parts and not token_ids:
            return None
        return replace(
            chunk,
            text=text,
            position=chunk.position + known,
            token_ids=token_ids,
            accepted=max(0, chunk.accepted - known),
            logprobs=chunk.logprobs[known:],
            parts=parts,
            characters=self._settle(self._came),
        )

    def rest(self) -> Chunk | None:
        """What the text's end makes certain; None if that is nothing new. Call it once, behind all chunks.

        It counts as one character, so that a mark tells whether the client has it.
        """
        if self._reader is None or self._had > self._came:
            return None
        parts = tuple(self._reader.flush())
        if not parts:
            return None
        return Chunk(
            "", self._end, (), 0, self._durable, parts=parts, characters=self._settle(self._came + 1)
        )

    def _read(self, text: str) -> tuple[Part, ...]:
        if self._reader is None:
            return (Said(text),) if text else ()
        return tuple(self._reader.push(text))

    def _settle(self, characters: int) -> int:
        """Count the text as had up to here; returns how many characters that adds."""
        added = max(0, characters - self.characters)
        self.characters += added
        return added
