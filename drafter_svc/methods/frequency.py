"""A source of the commonest committed ids, for roots where nothing better is known."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
from numpy.typing import NDArray

from drafter_svc.hypothesis import Hypothesis, Lesson
from drafter_svc.methods.base import Proposer

_CANDIDATES = 8
_NOTHING: Mapping[int, int] = {}
# Counts are halved at this total, so that they follow the traffic and the table stays small.
_HALVE_AT = 20_000


class Frequency:
    """Counts the committed ids of all sessions. The commonest are candidates, graded by rank."""

    name = "frequency"
    feedback_top_k = 0

    def __init__(self, log_odds: tuple[float, ...]) -> None:
        self.log_odds = log_odds
        # Counts it began with, until the first halving. Shared with others, so never changed.
        self._begun: Mapping[int, int] = _NOTHING
        # Total counts of the ids seen since it began.
        self._counts: dict[int, int] = {}
        self._total = 0
        self._best: Mapping[int, int] = {}
        # Counts, total and best ids as it began, for `fresh`.
        self._first = self._begun, self._total, self._best

    def proposer(self, session: Hypothesis) -> Proposer:
        """The same candidates for every session, at depth 0 only: deeper they would be mere chance."""
        return lambda context, depth: self._best if depth == 0 else _NOTHING

    def observe(self, session: Hypothesis, lesson: Lesson) -> None:
        """Count the committed ids."""
        counts = self._counts
        for token in lesson.committed:
            counts[token] = self._count(token) + 1
        self._total += len(lesson.committed)
        if self._total > _HALVE_AT:
            self._counts = {token: count // 2 for token, count in self._all().items() if count > 1}
            self._begun = _NOTHING
            self._total = sum(self._counts.values())
        self._best = self._ranked({*self._best, *lesson.committed})

    def forget(self, session_id: str) -> None:
        """Counts outlive their session."""

    def tables(self) -> dict[str, NDArray[np.int32]]:
        """Ids and their counts [ids, 2]."""
        return {"counts": np.array(list(self._all().items()), dtype=np.int32).reshape(-1, 2)}

    def restore(self, tables: Mapping[str, NDArray[np.int32]]) -> None:
        """Begin with such counts. Raises `ValueError` for negative ones."""
        if (tables["counts"] < 0).any():
            raise ValueError("counts hold negative numbers")
        self._begun = dict(tables["counts"].tolist())
        self._total = sum(self._begun.values())
        self._best = self._ranked(self._begun)
        self._first = self._begun, self._total, self._best

    def fresh(self) -> Frequency:
        """See `Source.fresh`."""
        other = Frequency(self.log_odds)
        other._first = other._begun, other._total, other._best = self._first
        return other

    def _count(self, token: int) -> int:
        return self._counts.get(token) or self._begun.get(token, 0)

    def _all(self) -> dict[int, int]:
        return {**self._begun, **self._counts}

    def _ranked(self, contenders: Iterable[int]) -> dict[int, int]:
        ranked = sorted(contenders, key=lambda token: (-self._count(token), token))[:_CANDIDATES]
        return {token: rank for rank, token in enumerate(ranked, start=1)}
