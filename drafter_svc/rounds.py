"""The sessions drafted for at one verifier: verdicts in, asks for trees out."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice

from drafter_svc import metrics
from drafter_svc.draft_trace import DraftTrace
from drafter_svc.hypothesis import Hypothesis, OutOfStepError
from drafter_svc.methods.base import Ask
from drafter_svc.runner import Drafts, Runner
from drafter_svc.seat import Seat, Sent, first_lacked
from paceline.session import SessionKey
from paceline.tree import TokenTree
from paceline.verdict import Verdict

# A larger tree, drafted ahead, has so many times the nodes and the levels of the first.
_AHEAD = 2


@dataclass(frozen=True, slots=True)
class TreeLimits:
    """Bounds of a source's trees: first ones have `nodes` and `depth`, larger ones `most_*`."""

    vocab_size: int
    nodes: int
    depth: int
    most_nodes: int = 0
    most_depth: int = 0

    @classmethod
    def of(cls, vocab_size: int, *, nodes: int, depth: int, most_nodes: int, most_depth: int) -> TreeLimits:
        """The smaller of what this drafter's settings say and the most that the verifier takes."""
        return cls(
            vocab_size,
            nodes=min(nodes, most_nodes),
            depth=min(depth, most_depth),
            most_nodes=min(_AHEAD * nodes, most_nodes),
            most_depth=min(_AHEAD * depth, most_depth),
        )


@dataclass(slots=True)
class Counters:
    """Since the start of the process, over all verifiers."""

    trees: int = 0
    drafted_tokens: int = 0
    accepted_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Joining:
    """A session to join; the first position of which a method lacks hidden states."""

    key: SessionKey
    known_length: int
    features_from: int


@dataclass(slots=True)
class Message:
    """One message to the verifier. `trees` are (key, base length, tree).

    `waited_since`: `time.perf_counter()` when the first of the sessions that get a first tree by it began to
    wait.
    """

    joins: list[Joining] = field(default_factory=list)
    leaves: list[str] = field(default_factory=list)
    trees: list[tuple[SessionKey, int, TokenTree]] = field(default_factory=list)
    waited_since: float | None = None

    def __bool__(self) -> bool:
        return bool(self.joins or self.leaves or self.trees)

    def split(self) -> Message:
        """Take joins and leaves out of the message, as one of its own."""
        said = Message(self.joins, self.leaves)
        self.joins, self.leaves = [], []
        return said


class Rounds:
    """The sessions drafted for at one verifier, and which of them wait for a tree of which source. No I/O.

    Every session that joined, or got a verdict, since its last ask waits for a tree of each source. Those
    that compute draft from the first verdict on, which answers the join.
    """

    def __init__(self, counters: Counters) -> None:
        self._counters = counters
        self._seats: dict[str, Seat] = {}
        # By number of the source.
        self._waiting: list[dict[str, Seat]] = []
        self._runners: tuple[Runner, ...] = ()
        self._limits = TreeLimits(0, 0, 0)

    def __len__(self) -> int:
        return len(self._seats)

    def __contains__(self, session_id: str) -> bool:
        return session_id in self._seats

    @property
    def vocab_size(self) -> int | None:
        """The verifier's vocabulary size; None before its first Welcome."""
        return self._limits.vocab_size or None

    def waiting(self, number: int) -> bool:
        """Whether any session can be asked for a tree of a source."""
        return any(True for _ in self._ready(number))

    def welcome(self, runners: Sequence[Runner], limits: TreeLimits) -> Message:
        """A stream is up: join every session again. All of them wait for trees.

        `runners` are of the sources, by their numbers.
        """
        for session_id, seat in self._seats.items():
            for gone in self._runners:
                if gone not in runners:
                    gone.forget(session_id)
            for new in runners:
                if new not in self._runners:
                    new.attach(seat.hypothesis)
        self._runners, self._limits = tuple(runners), limits
        self._waiting = [{} for _ in runners]
        message = Message()
        for session_id, seat in list(self._seats.items()):
            if _fits(seat.hypothesis, limits):
                seat.budget, seat.rejoined = None, False
                seat.failed.clear()
                seat.sent = [Sent() for _ in runners]
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
        sent = [Sent() for _ in self._runners]
        seat = self._seats[session_id] = Seat(hypothesis, time.monotonic(), sent, trace=trace)
        if self._runners:
            for runner in self._runners:
                runner.attach(hypothesis)
            self._join(seat, message)
        return message

    def detach(self, session_id: str) -> bool:
        """Forget a session. False if there was none."""
        seat = self._seats.pop(session_id, None)
        if seat is None:
            return False
        for waiting in self._waiting:
            waiting.pop(session_id, None)
        for runner in self._runners:
            runner.forget(session_id)
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
        """Take verdicts in. Sessions that go on and have a draft budget wait for trees."""
        message = Message()
        for verdict in verdicts:
            self.verdict(verdict, message)
        return message

    def verdict(self, verdict: Verdict, message: Message) -> None:
        """Take one verdict in; what it makes necessary to say is added to `message`."""
        session_id = verdict.key.session_id
        seat = self._seats.get(session_id)
        if seat is None or verdict.key.epoch != seat.hypothesis.key.epoch:
            return
        self._count(seat, verdict)
        seat.states.heard()
        if seat.trace is not None:
            seat.trace.heard(verdict.accepted)
        learned = self._learn(seat, verdict, message)
        if verdict.finished:
            self.detach(session_id)
        elif learned:
            seat.budget, seat.heard, seat.joined_again = verdict.draft_budget, time.monotonic(), False
            self._wait(seat)
            self._ask_for_states(seat, message)
        else:
            for waiting in self._waiting:
                waiting.pop(session_id, None)

    def states(self, key: SessionKey, position: int, count: int) -> Seat | None:
        """States of `count` positions came. The session that they are for, if its methods can use them."""
        seat = self._seats.get(key.session_id)
        if seat is None or seat.hypothesis.key != key or position + count >= seat.hypothesis.base_length:
            return None
        if not seat.states.came(position, count):
            return None
        if (steps := seat.states.caught_up(seat.hypothesis.base_length)) is not None:
            metrics.STATE_STEPS.observe(steps)
        return seat

    def asks(self, number: int = 0, *, most: int | None = None, only: str = "") -> list[Ask]:
        """An ask for each session that waits for a source's tree and can be asked, at most `most`.

        `only`: for none but this session.
        """
        waiting = self._waiting[number]
        ready = (seat for seat in self._ready(number) if only in ("", seat.hypothesis.key.session_id))
        asks = []
        for seat in list(islice(ready, most)):
            del waiting[seat.hypothesis.key.session_id]
            nodes = self._nodes(seat)
            if nodes > 0:
                if seat.trace is not None:
                    seat.trace.asked()
                asks.append(Ask(seat.hypothesis, seat.hypothesis.base_length, nodes, self._limits.depth))
        return asks

    def asks_ahead(self, number: int = 0) -> Iterator[Ask]:
        """An ask for a larger tree for each session whose last tree of a source has none beside it yet."""
        limits = self._limits
        for session_id, seat in list(self._seats.items()):
            sent, length = seat.sent[number], seat.hypothesis.base_length
            if sent.ahead or sent.length != length or seat.joined_again or seat.budget is None:
                continue
            nodes = min(_AHEAD * self._nodes(seat), limits.most_nodes)
            # The caller may let others have a turn between two asks.
            if 0 < len(sent.tree) < nodes and self._seats.get(session_id) is seat:
                yield Ask(seat.hypothesis, length, nodes, limits.most_depth, sent.tree)

    def deliver(
        self, drafts: Drafts, message: Message, number: int = 0, *, sessions: int | None = None
    ) -> Message:
        """Add a source's trees to a message; those of sessions that are gone are left out.

        Leaves sessions for which no source drafts any more. `sessions`: of the whole batch.
        """
        sessions = len(drafts) if sessions is None else sessions
        for ask, tree in drafts:
            key = ask.session.key
            seat = self._seats.get(key.session_id)
            if seat is None or seat.hypothesis is not ask.session:
                continue
            if tree is None:
                self._fail(seat, number, message)
            else:
                self._deliver(seat, ask, tree, message, number, sessions=sessions)
        return message

    def idle(self, older_than: float) -> Iterator[str]:
        """Ids of sessions without a verdict for `older_than` seconds."""
        since = time.monotonic() - older_than
        return (session_id for session_id, seat in self._seats.items() if seat.heard < since)

    def _nodes(self, seat: Seat) -> int:
        return self._limits.nodes if seat.budget is None else min(seat.budget, self._limits.nodes)

    def _ready(self, number: int) -> Iterator[Seat]:
        """The sessions that wait for a source's tree and can be asked."""
        runner = self._runners[number]
        # One tree may come beside a join.
        first = number == 0 and not runner.computes
        for seat in self._waiting[number].values():
            if (first or seat.budget is not None) and (
                not runner.takes_states or seat.states.reach(seat.hypothesis.base_length - 1)
            ):
                yield seat

    def _deliver(
        self, seat: Seat, ask: Ask, tree: TokenTree, message: Message, number: int, *, sessions: int
    ) -> None:
        ids, key = seat.hypothesis.ids, seat.hypothesis.key
        ahead = bool(ask.sent.tokens)
        seat.sent[number] = Sent(ask.length, tree, ahead)
        # There may have been a verdict meanwhile.
        if not tree.reroot(ids[ask.length :]).tokens:
            return
        if not ahead:
            since = message.waited_since
            message.waited_since = min(seat.waiting_since, seat.waiting_since if since is None else since)
        if number:
            tree = TokenTree(tree.tokens, tree.parents, tree.log_probs, (number,) * len(tree))
        message.trees.append((key, ask.length, tree))
        self._counters.trees += 1
        self._counters.drafted_tokens += len(tree)
        source = self._runners[number].source
        metrics.TREES.labels(source=source).inc()
        metrics.TREE_NODES.labels(source=source).inc(len(tree))
        if seat.trace is not None:
            seat.trace.drafted(ask.length, asked=ask.nodes, nodes=len(tree), sessions=sessions)

    def _fail(self, seat: Seat, number: int, message: Message) -> None:
        session_id = seat.hypothesis.key.session_id
        seat.failed.add(number)
        if all(each in seat.failed or runner.absent for each, runner in enumerate(self._runners)):
            message.leaves.append(session_id)
            self.detach(session_id)

    def _count(self, seat: Seat, verdict: Verdict) -> None:
        self._counters.accepted_tokens += verdict.accepted
        accepted = verdict.committed[: verdict.accepted]
        for number, runner in enumerate(self._runners):
            # What a method of text has to do with it, it counts itself.
            if runner.computes and accepted:
                count = seat.accepted(number, verdict.base_length, accepted)
                metrics.ACCEPTED_TOKENS.labels(source=runner.source).inc(count)

    def _join(self, seat: Seat, message: Message) -> None:
        self._say_join(seat, message)
        self._wait(seat)

    def _say_join(self, seat: Seat, message: Message) -> None:
        lacked = self._lacked(seat)
        seat.states.asked(first_lacked(lacked))
        hypothesis = seat.hypothesis
        message.joins.append(Joining(hypothesis.key, hypothesis.base_length, seat.states.next))

    def _lacked(self, seat: Seat) -> list[int | None]:
        return [runner.lacks_from(seat.hypothesis) for runner in self._runners if runner.takes_states]

    def _ask_for_states(self, seat: Seat, message: Message) -> None:
        """Join anew where a method has lost states of a session, or has room for them again."""
        if any(runner.takes_states for runner in self._runners):
            position = seat.states.ask_from(self._lacked(seat))
            if position is not None:
                # This join takes the place of one of the trees that the verdict asked for.
                seat.joined_again = True
                self._say_join(seat, message)

    def _wait(self, seat: Seat) -> None:
        seat.waiting_since = time.perf_counter()
        if seat.trace is not None:
            seat.trace.waits()
        for number, waiting in enumerate(self._waiting):
            if number not in seat.failed and not self._runners[number].absent:
                waiting[seat.hypothesis.key.session_id] = seat

    def _learn(self, seat: Seat, verdict: Verdict, message: Message) -> bool:
        """Whether the verdict fits. One that does not asks once, by a Join, for what is missing."""
        try:
            lesson = seat.hypothesis.learn(verdict)
        except OutOfStepError:
            if seat.rejoined or verdict.finished:
                message.leaves.append(verdict.key.session_id)
                self.detach(verdict.key.session_id)
            else:
                seat.rejoined = True
                self._say_join(seat, message)
            return False
        seat.rejoined = False
        for runner in self._runners:
            runner.observe(seat.hypothesis, lesson)
        return True


def _fits(hypothesis: Hypothesis, limits: TreeLimits) -> bool:
    return max(hypothesis.ids, default=0) < limits.vocab_size
