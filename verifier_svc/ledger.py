"""What a drafter may send on one stream, by what it was told there and which sessions were opened here.

The ledger counts causes, not times, so an honest drafter stays within it however messages cross: it sends a
tree for a verdict or beside a join, a leave for an earlier join, a join for a session that a gateway has
opened here, and word of what it took in for hidden states. See docs/failure.md.
"""

from __future__ import annotations

import time
from collections.abc import Callable

# Trees or joins of each source that may answer a verdict: a larger tree may follow the first.
ANSWERS_PER_SOURCE = 2
# Joins for each session: a gateway that loses track of one may attach its drafter a second time.
_JOINS_PER_SESSION = 2
# Sessions that a drafter may hold from an earlier connection: at least, and in multiples of the most.
_KNOWN_BEFORE, _TIMES_KNOWN_BEFORE = 1024, 4


class Ledger:
    """One stream's ledger, for `sources` of trees. `opened()`: number of sessions ever opened here."""

    def __init__(
        self,
        *,
        max_sessions: int,
        opened: Callable[[], int],
        sources: int = 1,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._max_sessions = max_sessions
        self._opened = opened
        self._answers_per_verdict = ANSWERS_PER_SOURCE * max(1, sources)
        self._opened_before = opened()
        self._clock = clock
        self._began_at = clock()
        self._answers = 0
        self._states = 0
        self._joins = 0
        self._leaves = 0

    def told(self, verdicts: int) -> None:
        """`verdicts` that may be answered are on their way down."""
        self._answers += self._answers_per_verdict * verdicts

    def sent_states(self, chunks: int) -> None:
        """So many chunks of hidden states, which may be acknowledged, are on their way down."""
        self._states += chunks

    def acknowledge(self) -> bool:
        """Count a message that says nothing but what was taken in; returns whether it has a cause."""
        if self._states <= 0:
            return False
        self._states -= 1
        return True

    def tree(self) -> bool:
        """Count a tree; returns whether it has a cause."""
        return self._answer()

    def join(self, *, again: bool) -> bool:
        """Count a join, `again` where the stream has the session already; returns whether it has a cause."""
        if again:
            # The drafter has missed ids before a verdict, and asks for them.
            return self._answer()
        if self._joins >= self._may_join():
            return False
        self._joins += 1
        # One tree may come beside the join.
        self._answers += 1
        return True

    def leave(self) -> bool:
        """Count a leave; returns whether it has a cause."""
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
        """Joins allowed so far: for sessions from before, for those opened here, and for those given over.

        A gateway checks each of its sessions once a second, and may then give it to this drafter.
        """
        before = max(_KNOWN_BEFORE, _TIMES_KNOWN_BEFORE * self._max_sessions)
        since = _JOINS_PER_SESSION * (self._opened() - self._opened_before)
        return before + since + self._max_sessions * (self._clock() - self._began_at)
