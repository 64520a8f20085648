"""Suffix lookup in the text itself: what followed the longest earlier occurrences of the last ids."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from drafter_svc.hypothesis import CONTEXT_IDS, Hypothesis, Lesson
from drafter_svc.methods.base import Proposer

# Most occurrences examined per lookup, the latest first; bounds the time in repetitive texts.
_PAIR_OCCURRENCES = 12
_SINGLE_OCCURRENCES = 6
# By match length in ids: the step of the grade. Lengths 4 and 5 share a step, and so do 6 and 7.
_LENGTH_STEPS = (0, 0, 1, 2, 3, 3, 4, 4, 5)
_RANKS = 3


class SuffixIndex:
    """Positions after each id and each pair of ids in one session's text."""

    def __init__(self, ids: list[int]) -> None:
        self._ids = ids
        self._singles: dict[int, list[int]] = {}
        self._pairs: dict[tuple[int, int], list[int]] = {}
        self._done = 0

    def extend(self) -> None:
        """Index the ids appended since the last call. O(new ids)."""
        ids, singles, pairs = self._ids, self._singles, self._pairs
        for position in range(max(1, self._done), len(ids)):
            last = ids[position - 1]
            singles.setdefault(last, []).append(position)
            if position > 1:
                pairs.setdefault((ids[position - 2], last), []).append(position)
        self._done = len(ids)

    def __call__(self, context: tuple[int, ...], depth: int) -> dict[int, int]:
        """Continuations of the longest matches: graded by match length, then by rank among them."""
        lengths: dict[int, int] = {}
        counts: dict[int, int] = {}
        if len(context) > 1:
            self._longer(context, lengths, counts)
        if len(lengths) < _RANKS:
            for position in reversed(self._singles.get(context[-1], ())[-_SINGLE_OCCURRENCES:]):
                token = self._ids[position]
                if lengths.setdefault(token, 1) == 1:
                    counts[token] = counts.get(token, 0) + 1
        if len(lengths) == 1:
            [(token, length)] = lengths.items()
            return {token: 1 + _LENGTH_STEPS[length] * _RANKS}
        ranked = sorted(lengths, key=lambda token: (-lengths[token], -counts[token]))
        longest = lengths[ranked[0]] if ranked else 0
        return {
            token: 2 + _LENGTH_STEPS[lengths[token]] * _RANKS + (rank > 0 or lengths[token] < longest)
            for rank, token in enumerate(ranked)
        }

    def _longer(self, context: tuple[int, ...], lengths: dict[int, int], counts: dict[int, int]) -> None:
        """Fill in continuations of matches of at least two ids, latest first."""
        ids, size = self._ids, min(len(context), CONTEXT_IDS)
        for position in reversed(self._pairs.get((context[-2], context[-1]), ())[-_PAIR_OCCURRENCES:]):
            length = 2
            while length < size and length < position and ids[position - 1 - length] == context[-1 - length]:
                length += 1
            token = ids[position]
            known = lengths.get(token, 0)
            if length > known:
                lengths[token] = length
                counts[token] = 1
            elif length == known:
                counts[token] += 1


class Lookup:
    """Suffix lookup over each session's own prompt and committed ids."""

    name = "lookup"
    feedback_top_k = 0
    # Three grades (alone, first of several, other) per step of match length; fitted with all others.
    log_odds: tuple[float, ...] = (
        *(-2.67, -0.34, -1.28, -1.94, 0.46, -0.34, -1.98, 1.21, 0.36, -1.06),
        *(1.41, 0.46, -0.83, 1.62, 1.09, -0.04, 2.67, 1.44, -0.23),
    )

    def __init__(self) -> None:
        self._indexes: dict[str, SuffixIndex] = {}

    def proposer(self, session: Hypothesis) -> Proposer:
        """The session's index as of the last verdict."""
        index = self._indexes.get(session.key.session_id)
        if index is None:
            index = self._indexes[session.key.session_id] = SuffixIndex(session.ids)
            index.extend()
        return index

    def observe(self, session: Hypothesis, lesson: Lesson) -> None:
        """Index what was committed."""
        index = self._indexes.get(session.key.session_id)
        if index is not None:
            index.extend()

    def forget(self, session_id: str) -> None:
        """Drop the session's index."""
        self._indexes.pop(session_id, None)

    def tables(self) -> dict[str, NDArray[np.int32]]:
        """None: everything it knows belongs to a session."""
        return {}

    def restore(self, tables: Mapping[str, NDArray[np.int32]]) -> None:
        """Nothing to begin with."""

    def fresh(self) -> Lookup:
        """See `Source.fresh`."""
        return Lookup()
