"""A source that reads rejected rows: what the target said for the same position after another token."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from drafter_svc.hypothesis import Hypothesis, Lesson
from drafter_svc.methods.base import Proposer

# Votes for a row's first, second and third id.
_VOTES = (1.0, 0.4, 0.2)
_CANDIDATES = 8
_NOTHING: Mapping[int, int] = {}


class Branches:
    """Proposes the ids that the last step's rejected rows voted for, by position.

    A rejected branch differs from the text in one token, and mostly continues like the text.
    """

    name = "branches"
    feedback_top_k = len(_VOTES)

    def __init__(self, log_odds: tuple[float, ...]) -> None:
        self.log_odds = log_odds
        self._votes: dict[str, list[Mapping[int, int]]] = {}

    def proposer(self, session: Hypothesis) -> Proposer:
        """Candidates by depth, from the session's last verdict."""
        levels = self._votes.get(session.key.session_id, ())

        def propose(context: tuple[int, ...], depth: int) -> Mapping[int, int]:
            return levels[depth] if depth < len(levels) else _NOTHING

        return propose

    def observe(self, session: Hypothesis, lesson: Lesson) -> None:
        """Count votes for positions that are not committed yet."""
        base = session.base_length
        levels: list[dict[int, float]] = []
        for row in lesson.rows:
            if row.position < base:
                continue
            while len(levels) <= row.position - base:
                levels.append({})
            votes = levels[row.position - base]
            for token, vote in zip(row.top_ids, _VOTES, strict=False):
                votes[token] = votes.get(token, 0.0) + vote
        self._votes[session.key.session_id] = [_graded(votes, depth) for depth, votes in enumerate(levels)]

    def forget(self, session_id: str) -> None:
        """Drop the session's votes."""
        self._votes.pop(session_id, None)

    def tables(self) -> dict[str, NDArray[np.int32]]:
        """None: everything it knows belongs to a session."""
        return {}

    def restore(self, tables: Mapping[str, NDArray[np.int32]]) -> None:
        """Nothing to begin with."""

    def fresh(self) -> Branches:
        """See `Source.fresh`."""
        return Branches(self.log_odds)


def _graded(votes: Mapping[int, float], depth: int) -> dict[int, int]:
    """The ids with most votes. Grades 1 to 3 at depth 0, 4 to 6 below: the first, the next two, the rest."""
    ranked = sorted(votes, key=lambda token: -votes[token])[:_CANDIDATES]
    first = 1 if depth == 0 else 4
    return {token: first + (rank > 0) + (rank > 2) for rank, token in enumerate(ranked)}
