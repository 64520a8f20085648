"""Which beginnings of texts the prefix cache holds, told as changes since an earlier moment."""

from __future__ import annotations

import secrets
from collections import OrderedDict, deque
from dataclasses import dataclass

# Keys that are told at most; with blocks of 128 ids they stand for two million tokens. Of more, those that
# were entered longest ago are not told until they are used again.
MOST_TOLD = 1 << 14


@dataclass(frozen=True, slots=True)
class TextChanges:
    """Keys (see `paceline.prefix`) that came and went, as far as `cursor`.

    `anew`: what was told before no longer counts. `more`: ask again from `cursor` on. No key is in both
    lists.
    """

    cursor: int
    anew: bool
    more: bool
    added: tuple[int, ...]
    removed: tuple[int, ...]


class KeptTexts:
    """The keys of one process's kept texts. Each change has a number; a cursor is the last one's.

    Not thread-safe: callers hold their own lock.
    """

    def __init__(self, most: int = MOST_TOLD) -> None:
        # Tells this record from that of a process before.
        self.instance = secrets.randbits(63) + 1
        self._most = most
        self._changes = 0
        # Each key with the number of the change that added it, ascending.
        self._added: OrderedDict[int, int] = OrderedDict()
        # Removals with their numbers; and the number of the last one that is no longer known.
        self._removed: deque[tuple[int, int]] = deque()
        self._forgotten = 0

    def add(self, key: int) -> None:
        """Note a text. Idempotent."""
        if key in self._added:
            return
        self._changes += 1
        self._added[key] = self._changes
        if len(self._added) > self._most:
            self.remove(next(iter(self._added)))

    def remove(self, key: int) -> None:
        """Note that a text is gone. Idempotent."""
        if self._added.pop(key, None) is None:
            return
        self._changes += 1
        self._removed.append((self._changes, key))
        if len(self._removed) > self._most:
            self._forgotten, _ = self._removed.popleft()

    def since(self, cursor: int | None, limit: int) -> TextChanges:
        """At most `limit` changes after `cursor`, in order; everything anew for None or one too old."""
        anew = cursor is None or not self._forgotten <= cursor <= self._changes
        cursor = 0 if cursor is None or anew else cursor
        changes: list[tuple[int, int, bool]] = []
        for key, number in reversed(self._added.items()):
            if number <= cursor:
                break
            changes.append((number, key, True))
        if not anew:
            for number, key in reversed(self._removed):
                if number <= cursor:
                    break
                changes.append((number, key, False))
        changes.sort()
        more = len(changes) > limit
        told = changes[:limit]
        last = {key: added for _, key, added in told}
        return TextChanges(
            cursor=told[-1][0] if more else self._changes,
            anew=anew,
            more=more,
            added=tuple(key for key, added in last.items() if added),
            removed=tuple(key for key, added in last.items() if not added),
        )
