"""What a drafter says has a cause, however messages cross; what a flood says has none."""

from __future__ import annotations

from collections import deque

from hypothesis import given
from hypothesis import strategies as st

from drafter_svc import methods
from drafter_svc.hypothesis import Hypothesis
from drafter_svc.rounds import Message, TreeLimits
from drafter_svc.tenants import Tenants
from paceline.sampling import SamplingParams
from paceline.session import SessionKey
from paceline.verdict import Verdict
from tests.drafting import DrivenRounds
from verifier_svc.drafters import DrafterStream
from verifier_svc.ledger import Ledger

VOCAB = 100
LIMITS = TreeLimits.of(VOCAB, nodes=2, depth=2, most_nodes=8, most_depth=4)
MAX_SESSIONS = 4
PROMPT = (1, 2, 3, 1, 2)


class World:
    """A drafter's rounds and a verifier's book of sessions, with messages under way both ways."""

    def __init__(self) -> None:
        self.rounds = DrivenRounds(Tenants(methods.create("lookup", VOCAB), most=4), LIMITS)
        self.opened = 0
        # Length by id of the sessions that are open; which of them the stream has joined.
        self.lengths: dict[str, int] = {}
        self.joined: set[str] = set()
        self.connect()

    def connect(self) -> None:
        """A stream from its beginning; what was under way on the one before is lost."""
        self.ledger = Ledger(max_sessions=MAX_SESSIONS, opened=lambda: self.opened, clock=lambda: 0.0)
        self.stream = DrafterStream(1, "peer", "d", 0, self.ledger)
        self.joined.clear()
        self.up: deque[Message] = deque()
        self.down: deque[list[Verdict]] = deque()
        self.say(self.rounds.welcome())

    def say(self, drafted: Message) -> None:
        if drafted:
            self.up.append(drafted)

    def open(self) -> None:
        if len(self.lengths) < MAX_SESSIONS:
            name = f"s{self.opened}"
            self.opened += 1
            self.lengths[name] = len(PROMPT)
            self.say(
                self.rounds.attach(Hypothesis(SessionKey(name, 1), SamplingParams(max_tokens=50), PROMPT))
            )

    def detach(self) -> None:
        for name in list(self.lengths)[:1]:
            if self.rounds.rounds.detach(name):
                self.say(Message(leaves=[name]))

    def step(self, *, skipped: int = 0) -> None:
        """`skipped` ids the drafter is never told of, so that it has to ask."""
        for name in self.joined:
            self.lengths[name] += 1 + skipped
            base = self.lengths[name] - 1
            self.stream.send([Verdict(SessionKey(name, 1), base, (3,), draft_budget=8)])

    def end(self) -> None:
        """A session ends, and its drafter is told so or finds out by itself."""
        for name in list(self.lengths)[:1]:
            length = self.lengths.pop(name)
            if name in self.joined and length % 2:
                self.joined.discard(name)
                self.stream.dismiss(SessionKey(name, 1), length)
            self.joined.discard(name)

    def flush(self) -> None:
        verdicts, _ = self.stream.take()
        if verdicts:
            self.down.append(verdicts)

    def hear(self) -> None:
        if self.down:
            self.say(self.rounds.verdicts(self.down.popleft()))

    def ahead(self) -> None:
        self.say(self.rounds.ahead())

    def take(self) -> None:
        """Take one message in as the verifier does: joins, trees, leaves."""
        if not self.up:
            return
        said = self.up.popleft()
        for join in said.joins:
            key, known, name = join.key, join.known_length, join.key.session_id
            assert self.ledger.join(again=name in self.joined)
            if name in self.lengths:
                self.joined.add(name)
                missing = tuple([3] * (self.lengths[name] - known))
                self.stream.welcome(Verdict(key, known, missing, draft_budget=8))
        for _ in said.trees:
            assert self.ledger.tree()
        for name in said.leaves:
            assert self.ledger.leave()
            self.joined.discard(name)


EVENTS = (
    "open",
    "take",
    "take",
    "step",
    "step",
    "flush",
    "flush",
    "hear",
    "hear",
    "ahead",
    "ahead",
    "end",
    "detach",
    "gap",
    "connect",
)


@given(st.lists(st.sampled_from(EVENTS), max_size=120))
def test_a_drafter_is_always_within_its_ledger(events: list[str]) -> None:
    world = World()
    for event in events:
        if event == "gap":
            world.step(skipped=2)
        else:
            getattr(world, event)()
    # Whatever was under way arrives in the end.
    while world.up or world.down or world.stream.verdicts:
        world.flush()
        world.hear()
        world.take()


def ledger(opened: int = 0) -> Ledger:
    return Ledger(max_sessions=4, opened=lambda: opened, clock=lambda: 0.0)


def test_trees_without_a_verdict_or_a_join_have_no_cause() -> None:
    made = ledger()
    assert not made.tree()
    assert made.join(again=False)
    assert [made.tree() for _ in range(3)] == [True, False, False]
    made.told(10)
    assert sum(made.tree() for _ in range(1000)) == 20


def test_joins_are_of_sessions_that_were_opened() -> None:
    count = 0
    made = Ledger(max_sessions=4, opened=lambda: count, clock=lambda: 0.0)
    first = sum(made.join(again=False) for _ in range(100_000))
    assert first < 2000
    count = 50
    assert sum(made.join(again=False) for _ in range(100_000)) == 100


def test_a_session_is_joined_again_only_for_a_verdict() -> None:
    made = ledger()
    made.join(again=False)
    made.tree()
    assert not made.join(again=True)
    made.told(1)
    assert made.join(again=True)


def test_a_leave_takes_a_join_back() -> None:
    made = ledger()
    assert not made.leave()
    made.join(again=False)
    assert made.leave()
    assert not made.leave()


def test_word_of_what_was_taken_in_answers_a_chunk() -> None:
    made = ledger()
    assert not made.acknowledge()
    made.told(5)
    assert not made.acknowledge()
    made.sent_states(3)
    assert [made.acknowledge() for _ in range(4)] == [True, True, True, False]
