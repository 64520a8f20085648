"""Token ids to text, incrementally: whole characters only, nothing past a stop string."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

INCOMPLETE = "\N{REPLACEMENT CHARACTER}"


class Decodes(Protocol):
    """What is needed of a tokenizer."""

    def decode(
        self, token_ids: list[int], *, skip_special_tokens: bool, clean_up_tokenization_spaces: bool
    ) -> str:
        """The text of ids."""


class Detokenizer:
    """Text of one session as its ids come. All chunks joined are the text of all ids.

    A token's text depends on the tokens before it (leading spaces, characters of several tokens), so
    each step decodes a short window twice: with and without the new ids; the difference is new text.
    """

    def __init__(self, tokenizer: Decodes) -> None:
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        # Text of ids before `_read` is out; decoding starts at `_window`.
        self._window = 0
        self._read = 0

    def push(self, token_ids: Sequence[int]) -> str:
        """New text; empty while a character is incomplete."""
        self._ids += token_ids
        known, text = self._decode(self._read), self._decode(len(self._ids))
        if text.endswith(INCOMPLETE) or len(text) <= len(known):
            return ""
        self._window, self._read = self._read, len(self._ids)
        return text[len(known) :]

    def flush(self) -> str:
        """What is left, however incomplete."""
        known, text = self._decode(self._read), self._decode(len(self._ids))
        self._window = self._read = len(self._ids)
        return text[len(known) :]

    def _decode(self, stop: int) -> str:
        return self._tokenizer.decode(
            self._ids[self._window : stop], skip_special_tokens=True, clean_up_tokenization_spaces=False
        )


class StopStrings:
    """Ends a text before the first of several strings, holding back what may become one."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""
        self.matched = False

    def push(self, text: str) -> str:
        """Text that is safe to show. Sets `matched` when a stop string has come; then it is the last."""
        if not self._stops:
            return text
        self._held += text
        found = [(place + len(stop), place) for stop in self._stops if (place := self._held.find(stop)) >= 0]
        if found:
            # The one that is complete first, so that the text does not depend on how it was cut.
            self.matched = True
            shown, self._held = self._held[: min(found)[1]], ""
            return shown
        keep = max(self._overlap(stop) for stop in self._stops)
        shown = self._held[: len(self._held) - keep]
        self._held = self._held[len(self._held) - keep :]
        return shown

    def flush(self) -> str:
        """What was held back and turned out to be no stop string."""
        shown, self._held = self._held, ""
        return shown

    def _overlap(self, stop: str) -> int:
        """Length of the longest end of the held text that begins `stop`."""
        for length in range(min(len(stop) - 1, len(self._held)), 0, -1):
            if self._held.endswith(stop[:length]):
                return length
        return 0
