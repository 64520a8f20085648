"""From the target's top ids of earlier steps: token recycling, by the last ids, of all sessions."""

from __future__ import annotations

from collections.abc import Mapping

from drafter_svc.hypothesis import Hypothesis, Outcome
from drafter_svc.methods.base import Proposer

TOP_K = 8
_NOTHING: Mapping[int, int] = {}


class Recycling:
    """Adjacency from the last `order` ids to the target's best next ids when it last saw them.

    Order 1 is Token Recycling as published. The table is shared by all sessions of a model and holds
    at most `capacity` entries; the oldest written go first. Grades are the rank, apart for entries
    that another session wrote: the session's own text is the better guide.
    """

    feedback_top_k = TOP_K

    def __init__(self, order: int, log_odds: tuple[float, ...], capacity: int) -> None:
        self.log_odds = log_odds
        self._order = order
        self._capacity = capacity
        self._next: dict[tuple[int, ...], tuple[str, dict[int, int], dict[int, int]]] = {}

    def proposer(self, session: Hypothesis) -> Proposer:
        """The table as this session sees it."""
        session_id, order, table = session.key.session_id, self._order, self._next

        def propose(context: tuple[int, ...], depth: int) -> Mapping[int, int]:
            entry = table.get(context[-order:])
            if entry is None:
                return _NOTHING
            return entry[1] if entry[0] == session_id else entry[2]

        return propose

    def observe(self, session: Hypothesis, outcome: Outcome) -> None:
        """Replace the entry of every verified row's context."""
        session_id, order, table = session.key.session_id, self._order, self._next
        for row in outcome.rows:
            if len(row.context) < order:
                continue
            context = row.context[-order:]
            table.pop(context, None)
            top = row.top_ids[:TOP_K]
            table[context] = (
                session_id,
                dict(zip(top, range(1, TOP_K + 1), strict=False)),
                dict(zip(top, range(TOP_K + 1, 2 * TOP_K + 1), strict=False)),
            )
        while len(table) > self._capacity:
            del table[next(iter(table))]

    def forget(self, session_id: str) -> None:
        """Entries outlive their session: the next one starts with them."""
