"""What a drafting method is, and what a source of candidates is that methods are merged from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from drafter_svc.hypothesis import Hypothesis, Lesson
from paceline.tree import TokenTree


class Method(Protocol):
    """Drafts trees for many sessions of one model. Called from one thread; never raises on any ids."""

    name: str
    # Ids per verified row it wants back; 0 asks for no feedback.
    feedback_top_k: int

    def draft(self, session: Hypothesis, budget: int, max_depth: int) -> TokenTree:
        """At most `budget` nodes, `max_depth` deep, on the session's ids; likeliest path first.

        `session.sampling` holds temperature and seed for a method that knows the target's noise.
        """
        ...

    def observe(self, session: Hypothesis, lesson: Lesson) -> None:
        """Learn from a verdict; `session.ids` already end with `lesson.committed`."""
        ...

    def settle(self) -> None:
        """Do what was left over from `observe`: call it when the trees have been sent."""
        ...

    def learn(self, session: Hypothesis, lesson: Lesson) -> None:
        """Like `observe`, of a text that was not drafted: nothing is measured."""
        ...

    def forget(self, session_id: str) -> None:
        """Drop what is kept for one session; unknown sessions are fine."""
        ...

    def tables(self) -> dict[str, NDArray[np.int32]]:
        """What it has learned that outlives sessions."""
        ...

    def restore(self, tables: Mapping[str, NDArray[np.int32]]) -> None:
        """Begin with such tables; call it first. Raises `ValueError` or `KeyError` for malformed ones."""
        ...

    def fresh(self) -> Method:
        """Another one that begins as this one began, and has learned nothing since.

        What they began with they share, uncopied; what they learn has one bound for all of them together.
        """
        ...


class Proposer(Protocol):
    """One source's candidates for one session."""

    def __call__(self, context: tuple[int, ...], depth: int) -> Mapping[int, int]:
        """Candidate ids after `context` (last ids, at least one), each with its grade from 1.

        `depth` is how many of the context's ids are guesses; 0 at the root.
        """
        ...


class Source(Protocol):
    """Where candidates come from. A grade says how good a candidate is; what it is worth is measured.

    `log_odds[grade]` is what a grade adds to a candidate's log-odds before anything was measured;
    `log_odds[0]` is for tokens that the source does not propose.
    """

    name: str
    feedback_top_k: int
    log_odds: tuple[float, ...]

    def proposer(self, session: Hypothesis) -> Proposer:
        """Candidates for the session as its ids stand now."""
        ...

    def observe(self, session: Hypothesis, lesson: Lesson) -> None:
        """Learn from a verdict, after it was appended to the session's ids."""
        ...

    def forget(self, session_id: str) -> None:
        """Drop what is kept for one session."""
        ...

    def tables(self) -> dict[str, NDArray[np.int32]]:
        """What it has learned that outlives sessions, empty where there is no such thing."""
        ...

    def restore(self, tables: Mapping[str, NDArray[np.int32]]) -> None:
        """Begin with such tables. Raises `ValueError` or `KeyError` for malformed ones."""
        ...

    def fresh(self) -> Source:
        """See `Method.fresh`."""
        ...
