"""What a drafter may say on one stream, by what it was told there and which sessions have begun here.

An honest drafter stays within it however messages cross, because it counts causes and not times: a tree is
sent for a verdict that was told or beside a join, a leave takes a join back, and a join is made for a
session that a gateway has opened here. See docs/failure.md.
"""

from __future__ import annotations

import time
from collections.abc import Callable

# Trees that a verdict may be answered with, or joins: a better one may follow the first.
ANSWERS_PER_VERDICT = 2
# A gateway that loses track of a session may attach its drafter a second time.
_JOINS_PER_SESSION = 2
# Sessions that a drafter may still hold of a verifier that it finds again.
_KNOWN_BEFORE, _TIMES_KNOWN_BEFORE = 1024, 4


class Ledger:
    """Of one stream. `opened()` says how many sessions have ever been opened here."""

    def __init__(
        self,
        *,
        max_sessions: int,
        opened: Callable[[], int],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._max_sessions = max_sessions
        self._opened = opened
        self._opened_before = opened()
        self._clock = clock
        self._began_at = clock()
        self._answers = 0
        self._joins = 0
        self._leaves = 0

    def told(self, verdicts: int) -> None:
        """So many verdicts that may be answered are on their way down."""
        self._answers += ANSWERS_PER_VERDICT * verdicts

    def tree(self) -> bool:
        """A tree came; whether there is a cause for it."""
        return self._answer()

    def join(self, *, again: bool) -> bool:
        """A join came, `again` where the stream has the session already; whether there is a cause for it."""
        if again:
            # Asks for what was missing before a verdict.
            return self._answer()
        if self._joins >= self._may_join():
            return False
        self._joins += 1
        # Its tree stands beside it.
        self._answers += 1
        return True

    def leave(self) -> bool:
        """A leave came; whether there is a cause for it."""
        if self._leaves >= self._joins:
            return False
        self._leaves += 1
        return True

    def _answer(self) -> bool:
        if self._answers <= 0:
            return False
        self._answers -= 1
        return True

    def _may_join(self) -> float:
        """Joins in all: of sessions from before, of those that were opened, and of those that moved here.

        A gateway looks after each of its sessions once a second, and may then give it another drafter.
        """
        before = max(_KNOWN_BEFORE, _TIMES_KNOWN_BEFORE * self._max_sessions)
        since = _JOINS_PER_SESSION * (self._opened() - self._opened_before)
        return before + since + self._max_sessions * (self._clock() - self._began_at)
