"""Incremental detokenisation: whole characters only, and nothing past a stop string."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

INCOMPLETE = "\N{REPLACEMENT CHARACTER}"

_BYTE_TOKEN = re.compile(r"<0x[0-9A-F]{2}>")
# Most tokens that may wait for their text; bounds the cost of a step.
_MAX_PENDING = 32
# A character has at most 4 bytes, a token at least one.
_CHARACTER_TOKENS = 4


@dataclass(frozen=True, slots=True)
class TokenTexts:
    """What is known of a model's vocabulary for detokenisation; made once, shared by all sessions."""

    decode: Callable[[list[int]], str]
    # Ids without text: special tokens, and ids from `size` on, which pad the model's vocabulary.
    silent: frozenset[int]
    size: int
    # Tokens of one byte each (`<0x0A>`), in vocabularies with byte fallback.
    byte_ids: frozenset[int]
    # An ordinary token and its text: ids decoded after it are decoded as in the middle of a text.
    anchor: tuple[int, ...]
    anchor_text: str
    # Special tokens without text, and of these the ones that have text all the same.
    hidden: Mapping[int, str] = field(default_factory=dict)
    shown: Mapping[int, str] = field(default_factory=dict)

    def showing(self, tokens: Collection[str]) -> TokenTexts:
        """The same, but these special tokens have text."""
        shown = {index: text for index, text in self.hidden.items() if text in tokens}
        return replace(self, shown=shown) if shown else self

    @classmethod
    def of(cls, tokenizer: Any, *, special: bool = False) -> TokenTexts:
        """From a transformers tokenizer; `special` shows special tokens.

        Its clean-up of spaces is off: it would change text already sent.
        """

        def decode(ids: list[int]) -> str:
            text = tokenizer.decode(ids, skip_special_tokens=not special, clean_up_tokenization_spaces=False)
            return str(text)

        added = tokenizer.added_tokens_decoder
        hidden = {index: token.content for index, token in added.items() if token.special and not special}
        silent = set(hidden)
        if not tokenizer.is_fast and not special:
            silent.update(tokenizer.all_special_ids)
        vocabulary = tokenizer.get_vocab()
        byte_ids = frozenset(index for token, index in vocabulary.items() if _BYTE_TOKEN.fullmatch(token))
        anchor = tuple(tokenizer("a", add_special_tokens=False)["input_ids"])
        size = max(vocabulary.values(), default=-1) + 1
        # A vocabulary that merely contains such a token has no byte fallback.
        complete = byte_ids if len(byte_ids) == 256 else frozenset[int]()
        return cls(decode, frozenset(silent), size, complete, anchor, decode(list(anchor)), hidden)


class Detokenizer:
    """Text of one session, chunk by chunk. All chunks joined equal the text of all ids decoded at once.

    Only ids whose text has not been returned are decoded, after an anchor, so a step's cost does not grow.
    Held back are the bytes of an incomplete character and, with byte fallback, a whole run of byte tokens up
    to `_MAX_PENDING`: such a run is text only if all of it is UTF-8.
    """

    def __init__(self, texts: TokenTexts) -> None:
        self._texts = texts
        self._pending: list[int] = []
        # Characters of the pending ids' text that were returned already.
        self._shown = 0
        # Whether any text was returned: a tokenizer may drop a text's first space only.
        self._begun = False

    def follow(self, prompt_ids: Sequence[int]) -> None:
        """Continue after a prompt: its text and the new one join to that of all ids, first space included."""
        texts = self._texts
        self._begun = any(token < texts.size and token not in texts.silent for token in prompt_ids)

    def push(self, token_ids: Sequence[int]) -> str:
        """The new text; empty while a character is incomplete."""
        if self._texts.shown:
            return self._push_showing(token_ids)
        return self._push_silent(token_ids)

    def _push_showing(self, token_ids: Sequence[int]) -> str:
        text, run = "", list[int]()
        for token in token_ids:
            shown = self._texts.shown.get(token)
            if shown is None:
                run.append(token)
                continue
            text += self._push_silent(run) + self.flush() + shown
            self._begun, run = True, []
        return text + self._push_silent(run)

    def _push_silent(self, token_ids: Sequence[int]) -> str:
        texts = self._texts
        self._pending += [token for token in token_ids if token < texts.size and token not in texts.silent]
        return self._push_bytes() if texts.byte_ids else self._push_text()

    def flush(self) -> str:
        """The rest, even if a character is incomplete."""
        text = self._decode(self._pending)[self._shown :]
        self._settle(len(self._pending))
        return text

    def _push_text(self) -> str:
        """The new text, for vocabularies whose tokens may end inside a character."""
        text = self._decode(self._pending)
        settled = text.removesuffix(INCOMPLETE)
        new = settled[self._shown :]
        self._shown = len(settled)
        if len(settled) == len(text):
            if text:
                self._settle(len(self._pending))
        elif len(self._pending) > _MAX_PENDING:
            self._shorten(text)
        return new

    def _shorten(self, text: str) -> None:
        """Return part of a long run of invalid bytes, cut where no character changes."""
        for tail in range(1, _CHARACTER_TOKENS + 1):
            head = self._decode(self._pending[:-tail])
            if text == head + self._inside(self._pending[-tail:]):
                shown = self._shown - len(head)
                self._settle(len(self._pending) - tail)
                self._shown = max(0, shown)
                return

    def _push_bytes(self) -> str:
        """The new text, for vocabularies whose characters are single tokens or runs of byte tokens."""
        pending, byte_ids = self._pending, self._texts.byte_ids
        end = len(pending)
        while end and pending[end - 1] in byte_ids:
            end -= 1
        if len(pending) - end >= _MAX_PENDING:
            ends = range(len(pending), len(pending) - _CHARACTER_TOKENS, -1)
            whole = (place for place in ends if not self._decode(pending[:place]).endswith(INCOMPLETE))
            end = next(whole, len(pending))
        text = self._decode(pending[:end])
        if text:
            self._settle(end)
        return text

    def _settle(self, count: int) -> None:
        """Note that the text of the first `count` pending ids was returned."""
        self._begun = self._begun or count > 0
        del self._pending[:count]
        self._shown = 0

    def _decode(self, ids: list[int]) -> str:
        return self._inside(ids) if self._begun else self._texts.decode(ids)

    def _inside(self, ids: list[int]) -> str:
        texts = self._texts
        return texts.decode([*texts.anchor, *ids])[len(texts.anchor_text) :]


class StopStrings:
    """Ends a text before the first stop string, and holds back text that may become one."""

    def __init__(self, stops: Sequence[str], *, shown: bool = False) -> None:
        """`shown`: the text ends behind the stop string."""
        self._stops = tuple(stops)
        self._shown = shown
        self._held = ""
        # The stop string that has come.
        self.found = ""

    @property
    def matched(self) -> bool:
        """Whether a stop string has come."""
        return bool(self.found)

    def push(self, text: str) -> str:
        """Text that is safe to send. Sets `found` when a stop string has come; then it is the last text."""
        if not self._stops:
            return text
        self._held += text
        found = [(place + len(stop), place) for stop in self._stops if (place := self._held.find(stop)) >= 0]
        if found:
            # The one that is complete first, so that the result does not depend on the chunks.
            end, place = min(found)
            self.found = self._held[place:end]
            shown, self._held = self._held[: end if self._shown else place], ""
            return shown
        keep = max(self._overlap(stop) for stop in self._stops)
        shown = self._held[: len(self._held) - keep]
        self._held = self._held[len(self._held) - keep :]
        return shown

    def flush(self) -> str:
        """Text that was held back and is no stop string after all."""
        shown, self._held = self._held, ""
        return shown

    def _overlap(self, stop: str) -> int:
        """Length of the longest suffix of the held text that is a prefix of `stop`."""
        for length in range(min(len(stop) - 1, len(self._held)), 0, -1):
            if self._held.endswith(stop[:length]):
                return length
        return 0
