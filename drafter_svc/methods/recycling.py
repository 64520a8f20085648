"""Token recycling: the target's top ids of earlier steps, by the last ids, of all sessions."""

from __future__ import annotations

import weakref
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from drafter_svc.hypothesis import Hypothesis, Lesson
from drafter_svc.methods.base import Proposer

TOP_K = 8
_NOTHING: Mapping[int, int] = {}
# Grades by rank: of entries that the session wrote, and of other entries.
_OWN, _OTHERS = range(1, TOP_K + 1), range(TOP_K + 1, 2 * TOP_K + 1)
# An entry: the session that wrote it, and the target's best next ids.
_Entries = Mapping[tuple[int, ...], tuple[str, tuple[int, ...]]]


class Room:
    """Bounds the entries of several tables together. The largest table loses its oldest entries first.

    So a table with no more than an even share loses nothing, whatever is written to the others.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._tables: weakref.WeakSet[Recycling] = weakref.WeakSet()
        # Entries that may be written before the tables must be counted again.
        self._free = capacity

    def enter(self, table: Recycling) -> None:
        """Count a table as long as it lives."""
        self._tables.add(table)

    def make(self, written: int) -> None:
        """Drop entries beyond the capacity, after `written` new ones."""
        self._free -= written
        if self._free >= 0:
            return
        sizes = {table: len(table) for table in self._tables if len(table)}
        excess = sum(sizes.values()) - self._capacity
        while excess > 0:
            largest = max(sizes, key=sizes.__getitem__)
            dropped = min(excess, sizes[largest] - self._capacity // len(sizes))
            largest.drop_oldest(dropped)
            sizes[largest] -= dropped
            excess -= dropped
        self._free = -excess


class Recycling:
    """Adjacency from the last `order` ids to the target's best next ids when it last saw them.

    Order 1 is Token Recycling as published. `room` bounds the entries that are written; the oldest go first.
    A grade is the rank in an entry. Other sessions' entries have their own grades: they are right less often.
    """

    feedback_top_k = TOP_K

    def __init__(self, order: int, log_odds: tuple[float, ...], room: Room) -> None:
        self.log_odds = log_odds
        self.name = f"recycling-{order}"
        self._order = order
        # Entries it began with, shared and never changed; entries written since.
        self._begun: _Entries = {}
        self._next: dict[tuple[int, ...], tuple[str, tuple[int, ...]]] = {}
        self._room = room
        room.enter(self)

    def __len__(self) -> int:
        """Entries written since it began, without the initial ones."""
        return len(self._next)

    def proposer(self, session: Hypothesis) -> Proposer:
        """The table as this session sees it."""
        session_id, order, table, begun = session.key.session_id, self._order, self._next, self._begun

        def propose(context: tuple[int, ...], depth: int) -> Mapping[int, int]:
            last = context[-order:]
            entry = table.get(last) or begun.get(last)
            if entry is None:
                return _NOTHING
            return dict(zip(entry[1], _OWN if entry[0] == session_id else _OTHERS, strict=False))

        return propose

    def observe(self, session: Hypothesis, lesson: Lesson) -> None:
        """Replace the entry of every verified row's context."""
        session_id, order, table = session.key.session_id, self._order, self._next
        before = len(table)
        for row in lesson.rows:
            if len(row.context) < order:
                continue
            context = row.context[-order:]
            table.pop(context, None)
            table[context] = session_id, row.top_ids[:TOP_K]
        self._room.make(len(table) - before)

    def drop_oldest(self, entries: int) -> None:
        """Forget that many entries, the oldest of those written since it began."""
        for _ in range(entries):
            del self._next[next(iter(self._next))]

    def forget(self, session_id: str) -> None:
        """Entries outlive their session: the next one starts with them."""

    def tables(self) -> dict[str, NDArray[np.int32]]:
        """Contexts [entries, order], oldest first, and their best next ids [entries, TOP_K], -1 for none."""
        old = {context: entry for context, entry in self._begun.items() if context not in self._next}
        entries = old | self._next
        tops = [(*top, *[-1] * (TOP_K - len(top))) for _, top in entries.values()]
        return {
            "contexts": np.array(list(entries), dtype=np.int32).reshape(-1, self._order),
            "next": np.array(tops, dtype=np.int32).reshape(-1, TOP_K),
        }

    def restore(self, tables: Mapping[str, NDArray[np.int32]]) -> None:
        """Begin with such entries. They count as another session's."""
        contexts, following = tables["contexts"], tables["next"]
        if contexts.shape != (len(following), self._order):
            raise ValueError(f"contexts of shape {contexts.shape} are not of order {self._order}")
        self._begun = {
            tuple(context): ("", tuple(token for token in top if token >= 0))
            for context, top in zip(contexts.tolist(), following.tolist(), strict=True)
        }

    def fresh(self) -> Recycling:
        """See `Source.fresh`."""
        other = Recycling(self._order, self.log_odds, self._room)
        other._begun = self._begun
        return other
