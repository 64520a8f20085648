"""What a gateway believes of the texts in one verifier's prefix cache, and the names of a session's own."""

from __future__ import annotations

import time
from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

from paceline.prefix import TextKeys, root_of

# Texts that this gateway sent are believed to be there for so long without the verifier's word: the time to
# compute a long prompt. Their number is bounded for each verifier.
_BELIEVED_SECONDS = 60.0
_MOST_BELIEVED = 4096


class TextNews(Protocol):
    """What a verifier says of its texts: a PrefixesResponse."""

    @property
    def instance(self) -> int: ...
    @property
    def cursor(self) -> int: ...
    @property
    def anew(self) -> bool: ...
    @property
    def block_size(self) -> int: ...
    @property
    def added(self) -> Iterable[int]: ...
    @property
    def removed(self) -> Iterable[int]: ...


class HeldTexts:
    """Keys (see `paceline.prefix`) of the texts that one verifier holds: by its own word, and by ours.

    The verifier's word comes with polls. What this gateway sent there counts until that can have come, so
    that a chat's next turn, or many requests over one document, need not wait for it.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        # Ids of a block; 0 while the verifier has said nothing, or keeps no texts.
        self.block_size = 0
        # Of the answer that was taken in last, for the next question.
        self.instance = self.cursor = 0
        self._clock = clock
        # Keys that the verifier says it holds.
        self.told: set[int] = set()
        # When each text that was sent is no longer believed; the oldest first.
        self._sent: OrderedDict[int, float] = OrderedDict()

    def hear(self, news: TextNews) -> None:
        """Take in what the verifier says."""
        if news.anew:
            self.told.clear()
            self._sent.clear()
        self.instance, self.cursor, self.block_size = news.instance, news.cursor, news.block_size
        self.told.update(news.added)
        for key in news.removed:
            self.told.discard(key)
            self._sent.pop(key, None)

    def send(self, text: RoutedText) -> None:
        """Note that a session with this text goes there, or has ended there."""
        until = self._clock() + _BELIEVED_SECONDS
        for key in text.keys(self.block_size):
            self._sent[key] = until
            self._sent.move_to_end(key)
        while len(self._sent) > _MOST_BELIEVED:
            self._sent.popitem(last=False)

    def held_tokens(self, text: RoutedText) -> int:
        """How many of the text's first ids have KV there, as far as is known; at most all but the last."""
        now, keys = self._clock(), text.keys(self.block_size)
        # A text's beginning outlasts its end in a prefix cache, so the held blocks are the first ones.
        blocks = bisect_left(keys, True, key=lambda key: not self._holds(key, now))
        return min(blocks * self.block_size, text.tokens - 1)

    def _holds(self, key: int, now: float) -> bool:
        return key in self.told or self._sent.get(key, 0.0) > now


class RoutedText:
    """A session's ids, as routing sees them: their number, and the keys of their blocks."""

    def __init__(self, token_ids: Sequence[int], salt: str = "") -> None:
        """`salt`: as of `paceline.prefix.root_of`."""
        self._token_ids = token_ids
        self._root = root_of(salt)
        self._keys: dict[int, TextKeys] = {}

    @property
    def tokens(self) -> int:
        """Number of ids."""
        return len(self._token_ids)

    @property
    def beginning(self) -> Sequence[int]:
        """The first ids: sessions with the same ones are likely to have more in common."""
        return self._token_ids[:64]

    def grown(self, token_ids: Sequence[int]) -> None:
        """The session has these ids now: those from before, and more."""
        self._token_ids = token_ids

    def keys(self, block_size: int) -> Sequence[int]:
        """Keys of the full blocks of so many ids; none for blocks of 0. Computed once."""
        if not block_size:
            return ()
        return self._keys.setdefault(block_size, TextKeys(block_size, self._root)).of(self._token_ids)
