"""A text that comes in pieces, read a character at a time by generators that can give some of it back."""

from __future__ import annotations

from collections.abc import Generator
from typing import TypeAlias, TypeVar

T = TypeVar("T")
# Reads characters as they come, and returns a `T`.
Reading: TypeAlias = Generator[None, str, T]

# JSON's.
SPACE = " \t\r\n"


class MalformedError(Exception):
    """The text is not what the reader reads. The last character read is the one that does not fit."""


class Characters:
    """The characters of a text. `held` are those that were read and have not been told yet."""

    def __init__(self) -> None:
        self.held = ""
        self._again: list[str] = []

    def next(self) -> Reading[str]:
        """The next character."""
        char = self._again.pop() if self._again else (yield)
        self.held += char
        return char

    def solid(self) -> Reading[str]:
        """The next character that is no space."""
        while (char := (yield from self.next())) in SPACE:
            pass
        return char

    def is_next(self, text: str) -> Reading[bool]:
        """Whether this text comes next. If not, what was read stays held, but for the last character."""
        for expected in text:
            char = yield from self.next()
            if char != expected:
                self.held = self.held[:-1]
                self.read_again(char)
                return False
        return True

    def taken(self) -> str:
        """All that was held; from now on nothing is."""
        held, self.held = self.held, ""
        return held

    def left(self) -> str:
        """All that is held or was to be read again; then nothing is."""
        again, self._again = "".join(reversed(self._again)), []
        return self.taken() + again

    def read_again(self, text: str) -> None:
        """Have this text come next."""
        self._again.extend(reversed(text))
