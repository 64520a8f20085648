"""From the target's top ids of earlier steps: token recycling, by the last ids, of all sessions."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from drafter_svc.hypothesis import Hypothesis, Outcome
from drafter_svc.methods.base import Proposer

TOP_K = 8
_NOTHING: Mapping[int, int] = {}
# Grades by rank, of the session's own entries and of others'.
_OWN, _OTHERS = range(1, TOP_K + 1), range(TOP_K + 1, 2 * TOP_K + 1)


class Recycling:
    """Adjacency from the last `order` ids to the target's best next ids when it last saw them.

    Order 1 is Token Recycling as published. The table is shared by all sessions of a model and holds
    at most `capacity` entries; the oldest written go first. Grades are the rank, apart for entries
    that another session wrote: the session's own text is the better guide.
    """

    feedback_top_k = TOP_K

    def __init__(self, order: int, log_odds: tuple[float, ...], capacity: int) -> None:
        self.log_odds = log_odds
        self.name = f"recycling-{order}"
        self._order = order
        self._capacity = capacity
        self._next: dict[tuple[int, ...], tuple[str, tuple[int, ...]]] = {}

    def proposer(self, session: Hypothesis) -> Proposer:
        """The table as this session sees it."""
        session_id, order, table = session.key.session_id, self._order, self._next

        def propose(context: tuple[int, ...], depth: int) -> Mapping[int, int]:
            entry = table.get(context[-order:])
            if entry is None:
                return _NOTHING
            return dict(zip(entry[1], _OWN if entry[0] == session_id else _OTHERS, strict=False))

        return propose

    def observe(self, session: Hypothesis, outcome: Outcome) -> None:
        """Replace the entry of every verified row's context."""
        session_id, order, table = session.key.session_id, self._order, self._next
        for row in outcome.rows:
            if len(row.context) < order:
                continue
            context = row.context[-order:]
            table.pop(context, None)
            table[context] = session_id, row.top_ids[:TOP_K]
        while len(table) > self._capacity:
            del table[next(iter(table))]

    def forget(self, session_id: str) -> None:
        """Entries outlive their session: the next one starts with them."""

    def tables(self) -> dict[str, NDArray[np.int32]]:
        """Contexts [entries, order], oldest first, and their best next ids [entries, TOP_K], -1 for none."""
        tops = [(*top, *[-1] * (TOP_K - len(top))) for _, top in self._next.values()]
        return {
            "contexts": np.array(list(self._next), dtype=np.int32).reshape(-1, self._order),
            "next": np.array(tops, dtype=np.int32).reshape(-1, TOP_K),
        }

    def restore(self, tables: Mapping[str, NDArray[np.int32]]) -> None:
        """Begin with such entries, as another session's."""
        contexts, following = tables["contexts"], tables["next"]
        if contexts.shape != (len(following), self._order):
            raise ValueError(f"contexts of shape {contexts.shape} are not of order {self._order}")
        for context, top in zip(contexts.tolist(), following.tolist(), strict=True):
            self._next[tuple(context)] = "", tuple(token for token in top if token >= 0)
