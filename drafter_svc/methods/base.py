"""What a drafting method is: what it needs, what it is asked, what it can be taught; and its sources."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from drafter_svc.hypothesis import Hypothesis, Lesson
from paceline.tree import TokenTree


@dataclass(frozen=True, slots=True)
class Needs:
    """What a method needs from verifiers besides committed ids. The Hello asks for it.

    `feedback_top_k` is the number of the target's top ids per verified row; 0 asks for no feedback.
    """

    feedback_top_k: int = 0


@dataclass(frozen=True, slots=True)
class Target:
    """The model that a verifier serves, from its Welcome."""

    model_id: str
    vocab_fingerprint: str
    vocab_size: int


@dataclass(frozen=True, slots=True)
class Ask:
    """Asks for a tree of at most `nodes` nodes and `depth` levels after the first `length` ids of a session.

    `session.ids` may grow while a method computes on its own thread; ids past `length` belong to a later ask.
    `session.sampling` holds temperature and seed for a method that knows the target's noise.
    """

    session: Hypothesis
    length: int
    nodes: int
    depth: int


class Method(Protocol):
    """Drafts trees for many sessions of one target.

    All calls come from one thread, in order: the event loop's, or, if `computes`, the method's own.
    No ids should make a call raise. If one does, the sessions it was made for are left (see `Runner`).
    """

    name: str
    # Whether calls take longer than the event loop may be held up.
    computes: bool

    def draft(self, asks: Sequence[Ask]) -> list[TokenTree]:
        """One tree for each ask, in the same order, likeliest path first. A tree may be empty."""
        ...

    def observe(self, session: Hypothesis, lesson: Lesson) -> None:
        """Take in a verdict. `session.ids` already hold `lesson.committed`, from `lesson.start` on."""
        ...

    def settle(self) -> None:
        """Finish what `observe` put off. Called after the trees have been sent."""
        ...

    def forget(self, session_id: str) -> None:
        """Drop what is kept for one session. Unknown sessions are fine."""
        ...


class Teachable(Protocol):
    """Can be taught by texts, and what it learned can be stored."""

    name: str

    def learn(self, session: Hypothesis, lesson: Lesson) -> None:
        """Learn from a text that was not drafted. Unlike `Method.observe`, nothing is measured."""
        ...

    def forget(self, session_id: str) -> None:
        """Drop what is kept for one text. Tables keep what it taught."""
        ...

    def tables(self) -> dict[str, NDArray[np.int32]]:
        """What it has learned that outlives sessions."""
        ...

    def restore(self, tables: Mapping[str, NDArray[np.int32]]) -> None:
        """Begin with such tables; call it first. Raises `ValueError` or `KeyError` for malformed ones."""
        ...


class TeachableMethod(Method, Teachable, Protocol):
    """A method whose tables belong to the sessions that taught them: each tenant has its own."""

    def fresh(self) -> TeachableMethod:
        """A new one that begins as this one began, without what this one learned since.

        The initial tables are shared, not copied. One bound holds for what all of them learn together.
        """
        ...


class MethodFactory(Protocol):
    """A drafting method as configured. The process makes it once, before its first Hello."""

    name: str
    needs: Needs

    def create(self, target: Target) -> Method:
        """The method for one target, for the sessions of all verifiers that serve it."""
        ...


class Proposer(Protocol):
    """One source's candidates for one session."""

    def __call__(self, context: tuple[int, ...], depth: int) -> Mapping[int, int]:
        """Candidate ids after `context` (last ids, at least one), each with its grade from 1.

        `depth` is how many of the context's ids are guesses; 0 at the root.
        """
        ...


class Source(Protocol):
    """Where candidates come from. A grade sorts candidates; how often each grade is right is measured.

    `log_odds[grade]` is what a grade adds to a candidate's log-odds before anything was measured;
    `log_odds[0]` is for tokens that the source does not propose. `feedback_top_k` is as in `Needs`.
    """

    name: str
    feedback_top_k: int
    log_odds: tuple[float, ...]

    def proposer(self, session: Hypothesis) -> Proposer:
        """Candidates for the session with its present ids."""
        ...

    def observe(self, session: Hypothesis, lesson: Lesson) -> None:
        """Learn from a verdict. `session.ids` already hold its committed ids."""
        ...

    def forget(self, session_id: str) -> None:
        """Drop what is kept for one session."""
        ...

    def tables(self) -> dict[str, NDArray[np.int32]]:
        """What it has learned that outlives sessions; may be empty."""
        ...

    def restore(self, tables: Mapping[str, NDArray[np.int32]]) -> None:
        """Begin with such tables. Raises `ValueError` or `KeyError` for malformed ones."""
        ...

    def fresh(self) -> Source:
        """See `TeachableMethod.fresh`."""
        ...
