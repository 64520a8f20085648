"""One round: verdicts in, and at once a tree for every session that may have one."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from drafter_svc.hypothesis import Hypothesis, OutOfStepError
from drafter_svc.methods.base import Method
from drafter_svc.tenants import Tenants
from paceline.session import SessionKey
from paceline.tree import TokenTree
from paceline.verdict import Verdict


@dataclass(frozen=True, slots=True)
class TreeLimits:
    """What the verifier takes, from its Welcome, and what this drafter wants to send."""

    vocab_size: int
    nodes: int
    depth: int


@dataclass(slots=True)
class Counters:
    """Since the start of the process, over all verifiers."""

    trees: int = 0
    drafted_tokens: int = 0
    accepted_tokens: int = 0


@dataclass(slots=True)
class Drafted:
    """What goes up to the verifier after a round."""

    joins: list[tuple[SessionKey, int]]
    leaves: list[str]
    trees: list[tuple[SessionKey, int, TokenTree]]

    def __bool__(self) -> bool:
        return bool(self.joins or self.leaves or self.trees)


@dataclass(slots=True)
class _Seat:
    """A session here, its last draft budget (None until a verdict came), and when it was heard of.

    `method` is its tenant's; None until the verifier's first Welcome.
    """

    hypothesis: Hypothesis
    heard: float
    method: Method | None = None
    budget: int | None = None
    rejoined: bool = False


class Rounds:
    """The sessions drafted for at one verifier. Pure bookkeeping: no I/O, nothing awaited."""

    def __init__(self, counters: Counters) -> None:
        self._counters = counters
        self._seats: dict[str, _Seat] = {}
        self._tenants: Tenants | None = None
        self._unsettled: list[Method] = []
        self._limits = TreeLimits(0, 0, 0)

    def __len__(self) -> int:
        return len(self._seats)

    def __contains__(self, session_id: str) -> bool:
        return session_id in self._seats

    @property
    def vocab_size(self) -> int | None:
        """The verifier's vocabulary size; None before its first Welcome."""
        return self._limits.vocab_size or None

    def welcome(self, tenants: Tenants, limits: TreeLimits) -> Drafted:
        """A stream is up: join every session again, and draft for each."""
        if self._tenants is not tenants:
            for seat in self._seats.values():
                self._vacate(seat)
        self._tenants, self._limits = tenants, limits
        drafted = Drafted([], [], [])
        for session_id, seat in list(self._seats.items()):
            if _fits(seat.hypothesis, limits):
                seat.budget, seat.rejoined = None, False
                self._join(seat, drafted)
            else:
                self.detach(session_id)
        return drafted

    def attach(self, hypothesis: Hypothesis) -> Drafted:
        """Draft for a session from now on; a later epoch replaces, the same or an earlier changes nothing."""
        drafted = Drafted([], [], [])
        session_id = hypothesis.key.session_id
        seat = self._seats.get(session_id)
        if seat is not None:
            if hypothesis.key.epoch <= seat.hypothesis.key.epoch:
                return drafted
            self.detach(session_id)
        seat = self._seats[session_id] = _Seat(hypothesis, time.monotonic())
        if self._tenants is not None:
            self._join(seat, drafted)
        return drafted

    def detach(self, session_id: str) -> bool:
        """Forget a session; whether there was one."""
        seat = self._seats.pop(session_id, None)
        if seat is not None:
            self._vacate(seat)
        return seat is not None

    def epoch(self, session_id: str) -> int | None:
        """Epoch under which a session is drafted for; None for an unknown one."""
        seat = self._seats.get(session_id)
        return None if seat is None else seat.hypothesis.key.epoch

    def clear(self) -> None:
        """Forget every session."""
        for session_id in list(self._seats):
            self.detach(session_id)

    def verdicts(self, verdicts: Iterable[Verdict]) -> Drafted:
        """Re-root every session on what was said of it, then draft on the new bases."""
        drafted = Drafted([], [], [])
        now = time.monotonic()
        touched: dict[str, _Seat] = {}
        for verdict in verdicts:
            session_id = verdict.key.session_id
            seat = self._seats.get(session_id)
            if seat is None or verdict.key.epoch != seat.hypothesis.key.epoch:
                continue
            self._counters.accepted_tokens += verdict.accepted
            if verdict.finished:
                self._learn(seat, verdict, drafted)
                self.detach(session_id)
                touched.pop(session_id, None)
            elif self._learn(seat, verdict, drafted):
                seat.budget, seat.heard = verdict.draft_budget, now
                touched[session_id] = seat
            else:
                touched.pop(session_id, None)
        for seat in touched.values():
            self._draft(seat, drafted)
        return drafted

    def settle(self) -> None:
        """Learn what can wait until the trees have been sent."""
        for method in self._unsettled:
            method.settle()
        self._unsettled.clear()

    def idle(self, older_than: float) -> Iterator[str]:
        """Ids of sessions of which nothing was heard for `older_than` seconds."""
        since = time.monotonic() - older_than
        return (session_id for session_id, seat in self._seats.items() if seat.heard < since)

    def _vacate(self, seat: _Seat) -> None:
        """Let go of the tenant's method, and it of the session."""
        if seat.method is not None and self._tenants is not None:
            seat.method.forget(seat.hypothesis.key.session_id)
            seat.method = None
            self._tenants.leave(seat.hypothesis.tenant)

    def _join(self, seat: _Seat, drafted: Drafted) -> None:
        if seat.method is None and self._tenants is not None:
            seat.method = self._tenants.enter(seat.hypothesis.tenant)
        drafted.joins.append((seat.hypothesis.key, seat.hypothesis.base_length))
        self._draft(seat, drafted)

    def _learn(self, seat: _Seat, verdict: Verdict, drafted: Drafted) -> bool:
        """Take a verdict in; one that does not fit asks once, by a Join, for what is missing."""
        assert seat.method is not None
        try:
            lesson = seat.hypothesis.learn(verdict)
        except OutOfStepError:
            if seat.rejoined or verdict.finished:
                drafted.leaves.append(verdict.key.session_id)
                self.detach(verdict.key.session_id)
            else:
                seat.rejoined = True
                drafted.joins.append((seat.hypothesis.key, seat.hypothesis.base_length))
            return False
        seat.rejoined = False
        seat.method.observe(seat.hypothesis, lesson)
        self._unsettled.append(seat.method)
        return True

    def _draft(self, seat: _Seat, drafted: Drafted) -> None:
        assert seat.method is not None
        nodes = self._limits.nodes if seat.budget is None else min(seat.budget, self._limits.nodes)
        if nodes <= 0:
            return
        hypothesis = seat.hypothesis
        tree = seat.method.draft(hypothesis, nodes, self._limits.depth)
        if tree.tokens:
            drafted.trees.append((hypothesis.key, hypothesis.base_length, tree))
            self._counters.trees += 1
            self._counters.drafted_tokens += len(tree)


def _fits(hypothesis: Hypothesis, limits: TreeLimits) -> bool:
    return max(hypothesis.ids, default=0) < limits.vocab_size
