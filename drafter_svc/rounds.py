"""The sessions drafted for at one verifier: verdicts in, asks for trees out."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from drafter_svc.draft_trace import DraftTrace
from drafter_svc.hypothesis import Hypothesis, OutOfStepError
from drafter_svc.methods.base import Ask
from drafter_svc.runner import Drafts, Runner
from paceline.session import SessionKey
from paceline.tree import TokenTree
from paceline.verdict import Verdict


@dataclass(frozen=True, slots=True)
class TreeLimits:
    """Bounds of trees for one verifier: the smaller of its Welcome's and this drafter's settings."""

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
class Message:
    """One message to the verifier. `joins` are (key, known length), `trees` (key, base length, tree)."""

    joins: list[tuple[SessionKey, int]] = field(default_factory=list)
    leaves: list[str] = field(default_factory=list)
    trees: list[tuple[SessionKey, int, TokenTree]] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.joins or self.leaves or self.trees)


@dataclass(slots=True)
class _Seat:
    """A session, when it was last heard of, and its draft budget: None until a verdict says it."""

    hypothesis: Hypothesis
    heard: float
    budget: int | None = None
    rejoined: bool = False
    # None unless its trace is recorded.
    trace: DraftTrace | None = None


class Rounds:
    """The sessions drafted for at one verifier, and which of them wait for a tree. No I/O.

    Every session that joined, or got a verdict, since its last ask waits for a tree.
    """

    def __init__(self, counters: Counters) -> None:
        self._counters = counters
        self._seats: dict[str, _Seat] = {}
        self._waiting: dict[str, _Seat] = {}
        self._waiting_since = 0.0
        self._runner: Runner | None = None
        self._limits = TreeLimits(0, 0, 0)

    def __len__(self) -> int:
        return len(self._seats)

    def __contains__(self, session_id: str) -> bool:
        return session_id in self._seats

    @property
    def vocab_size(self) -> int | None:
        """The verifier's vocabulary size; None before its first Welcome."""
        return self._limits.vocab_size or None

    @property
    def waiting(self) -> bool:
        """Whether any session waits for a tree."""
        return bool(self._waiting)

    @property
    def waiting_since(self) -> float:
        """`time.perf_counter()` when a session last began to wait while no other did."""
        return self._waiting_since

    def welcome(self, runner: Runner, limits: TreeLimits) -> Message:
        """A stream is up: join every session again. All of them wait for a tree."""
        if self._runner is not None and self._runner is not runner:
            for session_id in self._seats:
                self._runner.forget(session_id)
        self._runner, self._limits = runner, limits
        self._waiting.clear()
        message = Message()
        for session_id, seat in list(self._seats.items()):
            if _fits(seat.hypothesis, limits):
                seat.budget, seat.rejoined = None, False
                self._join(seat, message)
            else:
                self.detach(session_id)
        return message

    def attach(self, hypothesis: Hypothesis, trace: DraftTrace | None = None) -> Message:
        """Draft for a session from now on. A later epoch replaces; the same or an earlier changes nothing."""
        message = Message()
        session_id = hypothesis.key.session_id
        seat = self._seats.get(session_id)
        if seat is not None:
            if hypothesis.key.epoch <= seat.hypothesis.key.epoch:
                if trace is not None:
                    trace.end()
                return message
            self.detach(session_id)
        seat = self._seats[session_id] = _Seat(hypothesis, time.monotonic(), trace=trace)
        if self._runner is not None:
            self._join(seat, message)
        return message

    def detach(self, session_id: str) -> bool:
        """Forget a session. False if there was none."""
        seat = self._seats.pop(session_id, None)
        self._waiting.pop(session_id, None)
        if seat is None:
            return False
        if self._runner is not None:
            self._runner.forget(session_id)
        if seat.trace is not None:
            seat.trace.end()
        return True

    def epoch(self, session_id: str) -> int | None:
        """Epoch under which a session is drafted for; None for an unknown one."""
        seat = self._seats.get(session_id)
        return None if seat is None else seat.hypothesis.key.epoch

    def clear(self) -> None:
        """Forget every session."""
        for session_id in list(self._seats):
            self.detach(session_id)

    def verdicts(self, verdicts: Iterable[Verdict]) -> Message:
        """Take verdicts in. Sessions that go on and have a draft budget wait for a tree."""
        message = Message()
        now = time.monotonic()
        for verdict in verdicts:
            session_id = verdict.key.session_id
            seat = self._seats.get(session_id)
            if seat is None or verdict.key.epoch != seat.hypothesis.key.epoch:
                continue
            self._counters.accepted_tokens += verdict.accepted
            if seat.trace is not None:
                seat.trace.heard(verdict.accepted)
            learned = self._learn(seat, verdict, message)
            if verdict.finished:
                self.detach(session_id)
            elif learned:
                seat.budget, seat.heard = verdict.draft_budget, now
                self._wait(seat)
            else:
                self._waiting.pop(session_id, None)
        return message

    def asks(self) -> list[Ask]:
        """An ask for each session that waits for a tree; none of them waits any longer."""
        waiting, self._waiting = self._waiting, {}
        asks = []
        for seat in waiting.values():
            nodes = self._limits.nodes if seat.budget is None else min(seat.budget, self._limits.nodes)
            if nodes > 0:
                length = seat.hypothesis.base_length
                if seat.trace is not None:
                    seat.trace.asked()
                asks.append(Ask(seat.hypothesis, length, nodes, self._limits.depth))
        return asks

    def deliver(self, drafts: Drafts, message: Message) -> Message:
        """Add trees to a message. Leaves sessions that the method failed for; skips those that are gone."""
        for ask, tree in drafts:
            key = ask.session.key
            seat = self._seats.get(key.session_id)
            if seat is None or seat.hypothesis is not ask.session:
                continue
            if tree is None:
                message.leaves.append(key.session_id)
                self.detach(key.session_id)
            elif tree.tokens:
                message.trees.append((key, ask.length, tree))
                self._counters.trees += 1
                self._counters.drafted_tokens += len(tree)
                if seat.trace is not None:
                    seat.trace.drafted(ask.length, asked=ask.nodes, nodes=len(tree), sessions=len(drafts))
        return message

    def idle(self, older_than: float) -> Iterator[str]:
        """Ids of sessions without a verdict for `older_than` seconds."""
        since = time.monotonic() - older_than
        return (session_id for session_id, seat in self._seats.items() if seat.heard < since)

    def _join(self, seat: _Seat, message: Message) -> None:
        message.joins.append((seat.hypothesis.key, seat.hypothesis.base_length))
        self._wait(seat)

    def _wait(self, seat: _Seat) -> None:
        if not self._waiting:
            self._waiting_since = time.perf_counter()
        if seat.trace is not None:
            seat.trace.waits()
        self._waiting[seat.hypothesis.key.session_id] = seat

    def _learn(self, seat: _Seat, verdict: Verdict, message: Message) -> bool:
        """Whether the verdict fits. One that does not asks once, by a Join, for what is missing."""
        assert self._runner is not None
        try:
            lesson = seat.hypothesis.learn(verdict)
        except OutOfStepError:
            if seat.rejoined or verdict.finished:
                message.leaves.append(verdict.key.session_id)
                self.detach(verdict.key.session_id)
            else:
                seat.rejoined = True
                message.joins.append((seat.hypothesis.key, seat.hypothesis.base_length))
            return False
        seat.rejoined = False
        self._runner.observe(seat.hypothesis, lesson)
        return True


def _fits(hypothesis: Hypothesis, limits: TreeLimits) -> bool:
    return max(hypothesis.ids, default=0) < limits.vocab_size
