"""Waiting for trees: only where it is expected to pay, and never long for a drafter that does not answer."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paceline.sampling import SamplingParams
from paceline.session import SessionKey
from paceline.tree import TokenTree
from verifier_svc.budget import PROBE_STEPS
from verifier_svc.drafting import Drafting
from verifier_svc.sessions import Session
from verifier_svc.waiting import (
    GIVE_UP_SECONDS,
    PATIENCE,
    Awaited,
    Gained,
    Held,
    TreeWait,
    wait_seconds,
)

TREE = TokenTree((1,), (-1,), (0.0,))


def _heard(session: Session) -> None:
    """A tree came beside the join, and nobody had asked for it."""
    session.drafting.came(TREE, session.length, now=0.0)
    session.drafting.drop_trees()


def _awaited(gain_tokens: float, expected_in: float) -> Awaited:
    return Awaited(gain_tokens, expected_in, PATIENCE * expected_in)


def test_waiting_for_a_good_tree_that_is_near_until_it_is_overdue() -> None:
    near = _awaited(2.0, 0.005)
    assert wait_seconds([near], ready_gain=0.0, sessions=1, step_seconds=0.04, limit=0.02) == 0.015
    assert wait_seconds([near], ready_gain=0.0, sessions=1, step_seconds=0.04, limit=0.01) == 0.01


@pytest.mark.parametrize(
    "awaited",
    [
        [],
        [_awaited(2.0, 0.03)],  # past the limit
        [_awaited(0.1, 0.01)],  # brings less than it costs
    ],
)
def test_not_waiting(awaited: list[Awaited]) -> None:
    assert wait_seconds(awaited, ready_gain=0.0, sessions=1, step_seconds=0.04, limit=0.02) == 0.0


@given(
    awaited=st.lists(
        st.builds(_awaited, gain_tokens=st.floats(0, 8), expected_in=st.floats(0, 0.1)), max_size=6
    ),
    ready_gain=st.floats(0, 20),
    sessions=st.integers(1, 20),
    step_seconds=st.floats(0.001, 0.2),
    limit=st.floats(0, 0.1),
)
def test_a_wait_is_expected_to_raise_the_rate_and_keeps_the_limit(
    awaited: list[Awaited], ready_gain: float, sessions: int, step_seconds: float, limit: float
) -> None:
    wait = wait_seconds(
        awaited, ready_gain=ready_gain, sessions=sessions, step_seconds=step_seconds, limit=limit
    )
    assert 0.0 <= wait <= limit
    if wait:
        rates = [
            (sessions + ready_gain + sum(tree.gain_tokens for tree in awaited if tree.expected_in <= until))
            / (step_seconds + until)
            for until in {tree.expected_in for tree in awaited if tree.expected_in <= limit}
        ]
        assert max(rates) > (sessions + ready_gain) / step_seconds


class _Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> _Clock:
    return _Clock()


@pytest.fixture
def wait(clock: _Clock) -> TreeWait:
    return TreeWait(clock)


@pytest.fixture
def session() -> Session:
    opened = Session(
        key=SessionKey("a", 1),
        prompt_length=2,
        token_ids=[1, 2, 3],
        sampling=SamplingParams(max_tokens=64),
        length_limit=66,
        opened_length=2,
    )
    opened.num_computed, opened.drafting.stream_id = 2, 1
    _heard(opened)
    # Not one of the steps in which a tree is hoped for whatever came of the others.
    opened.steps = 1
    return opened


def _answers(wait: TreeWait, clock: _Clock, session: Session, seconds: float, *, late: bool = False) -> None:
    wait.asked(session)
    base = session.length
    if late:
        session.token_ids.append(4)
        session.num_computed += 1
    clock.now += seconds
    wait.came(session, TREE, base)
    session.drafting.drop_trees()


def _verified(wait: TreeWait, session: Session, gain: float) -> None:
    session.drafted_steps += 1
    wait.verified(session, Gained(gain, {0: gain}))


def test_a_drafter_is_waited_for_as_long_as_it_has_been_taking(
    wait: TreeWait, clock: _Clock, session: Session
) -> None:
    for _ in range(50):
        _answers(wait, clock, session, 0.002)
    assert wait.seconds([session], limit=1.0) == 0.0, "nothing is on its way"
    wait.asked(session)
    assert wait.seconds([session], limit=1.0) == pytest.approx(PATIENCE * 0.002, rel=0.01)
    clock.now += 0.004
    assert wait.seconds([session], limit=1.0) == pytest.approx(0.002, rel=0.02)
    clock.now += 0.003
    assert wait.seconds([session], limit=1.0) == 0.0, "it is overdue"


def test_late_trees_teach_how_long_a_drafter_takes(wait: TreeWait, clock: _Clock, session: Session) -> None:
    """Were they not counted, a drafter that became slower would never be waited for again."""
    for _ in range(50):
        _answers(wait, clock, session, 0.001)
    for _ in range(50):
        _answers(wait, clock, session, 0.008, late=True)
    wait.asked(session)
    clock.now += 0.006
    assert wait.seconds([session], limit=1.0) > 0.0


def test_a_drafter_that_stopped_answering_holds_nobody_up(
    wait: TreeWait, clock: _Clock, session: Session
) -> None:
    for _ in range(50):
        _answers(wait, clock, session, 5.0)
    wait.asked(session)
    clock.now += GIVE_UP_SECONDS
    assert wait.seconds([session], limit=1.0) == 0.0


def test_nobody_waits_while_there_is_a_prompt_to_compute(wait: TreeWait, session: Session) -> None:
    wait.asked(session)
    assert wait.seconds([session], limit=1.0) > 0.0
    session.num_computed = 0
    assert wait.seconds([session], limit=1.0) == 0.0


def test_a_drafter_that_left_is_not_waited_for(wait: TreeWait, session: Session) -> None:
    wait.asked(session)
    session.drafting.leave()
    assert wait.seconds([session], limit=1.0) == 0.0


def test_a_late_tree_is_not_taken_to_come_at_once(wait: TreeWait, clock: _Clock, session: Session) -> None:
    """What was not worth its wait at first is not worth as long a wait later."""
    for _ in range(50):
        _answers(wait, clock, session, 0.01)
    for _ in range(200):
        _verified(wait, session, 0.1)
        wait.stepped(0.05)
    wait.asked(session)
    assert wait.seconds([session], limit=1.0) == 0.0
    clock.now += 0.012
    assert wait.seconds([session], limit=1.0) == 0.0


def test_trees_that_are_there_make_waiting_dearer(wait: TreeWait, clock: _Clock, session: Session) -> None:
    other = replace(session, key=SessionKey("b", 1), token_ids=[1, 2, 3], drafting=Drafting())
    for _ in range(50):
        _answers(wait, clock, session, 0.01)
    for _ in range(200):
        _verified(wait, session, 0.5)
        wait.stepped(0.05)
    wait.asked(session)
    assert wait.seconds([session, other], limit=1.0) > 0.0
    held = {"b": Held(3.0, frozenset({0}))}
    assert wait.seconds([session, other], limit=1.0, held=lambda each: held.get(each.key.session_id)) == 0.0


def test_trees_that_bring_nothing_are_not_waited_for(wait: TreeWait, session: Session) -> None:
    wait.asked(session)
    assert wait.seconds([session], limit=1.0) > 0.0
    # Nodes are accepted now and then, and cost as much: or none is worth its row.
    for gain in (0.3, -0.3, 0.0) * 20:
        _verified(wait, session, gain)
    assert wait.seconds([session], limit=1.0) == 0.0
    for _ in range(20):
        _verified(wait, session, 2.0)
    assert wait.seconds([session], limit=1.0) > 0.0


def test_a_new_session_whose_trees_bring_nothing_shows_it_soon(wait: TreeWait, session: Session) -> None:
    wait.asked(session)
    for _ in range(5):
        assert wait.seconds([session], limit=1.0) > 0.0, "five trees are no proof"
        _verified(wait, session, -0.3)
    for _ in range(15):
        _verified(wait, session, -0.3)
    assert wait.seconds([session], limit=1.0) == 0.0


def test_a_few_unlucky_trees_do_not_end_the_waiting(wait: TreeWait, session: Session) -> None:
    """A tree that nobody waits for is late, and shows nothing: it would be for long."""
    wait.asked(session)
    for _ in range(50):
        _verified(wait, session, 1.0)
    for _ in range(15):
        _verified(wait, session, -0.5)
    assert wait.seconds([session], limit=1.0) > 0.0


def test_trees_that_brought_nothing_are_hoped_for_now_and_then(wait: TreeWait, session: Session) -> None:
    for _ in range(200):
        _verified(wait, session, -0.5)
    wait.asked(session)
    waited = []
    for session.steps in range(100, 100 + 4 * PROBE_STEPS):
        waited.append(wait.seconds([session], limit=1.0) > 0.0)
    assert waited.count(True) == 4
    while wait.seconds([session], limit=1.0) == 0.0 or session.steps % PROBE_STEPS == 0:
        if session.steps % PROBE_STEPS == 0:
            _verified(wait, session, 2.0)
        session.steps += 1
        assert session.steps < 1000, "trees that bring something again are never waited for"


TEXT, EAGLE = 0, 1


def _both_answer(wait: TreeWait, clock: _Clock, session: Session, text: float, eagle: float) -> None:
    """The text answers after so many seconds, and the head after so many."""
    wait.asked(session)
    began = clock.now
    for source, seconds in sorted(((TEXT, text), (EAGLE, eagle)), key=lambda each: each[1]):
        clock.now = began + seconds
        wait.came(session, TokenTree((source,), (-1,), (0.0,), (source,)), session.length)
    session.drafting.drop_trees()
    session.token_ids.append(4)
    session.num_computed += 1


def _brought(wait: TreeWait, session: Session, whole: float, *, text: float, eagle: float) -> None:
    session.drafted_steps += 1
    wait.verified(session, Gained(whole, {TEXT: text, EAGLE: eagle}))


@pytest.fixture
def two(wait: TreeWait, clock: _Clock, session: Session) -> Session:
    """A session whose drafter answers from the text after 1 ms and from its head after 10; steps take 50."""
    for _ in range(50):
        _both_answer(wait, clock, session, 0.001, 0.010)
        wait.stepped(0.05)
    wait.asked(session)
    return session


def _answer(wait: TreeWait, session: Session, source: int) -> None:
    wait.came(session, TokenTree((9,), (-1,), (0.0,), (source,)), session.length)


def _waits_with(wait: TreeWait, session: Session, gain_tokens: float) -> bool:
    """Whether the session is waited for though it has a tree of the text that may bring so much."""
    held = Held(gain_tokens, frozenset({TEXT}))
    return wait.seconds([session], limit=1.0, held=lambda each: held) > 0.0


def test_each_source_is_waited_for_as_long_as_it_takes(wait: TreeWait, clock: _Clock, two: Session) -> None:
    for _ in range(100):
        _brought(wait, two, 1.5, text=0.5, eagle=1.0)
    assert wait.seconds([two], limit=1.0) == pytest.approx(PATIENCE * 0.010, rel=0.02)
    clock.now += 0.001
    _answer(wait, two, TEXT)
    assert wait.seconds([two], limit=1.0) == pytest.approx(PATIENCE * 0.010 - 0.001, rel=0.02)
    _answer(wait, two, EAGLE)
    assert wait.seconds([two], limit=1.0) == 0.0, "nothing more is on its way"


def test_a_source_that_adds_too_little_is_not_waited_for(wait: TreeWait, clock: _Clock, two: Session) -> None:
    """10 ms of a step of 50 are a fifth of what it yields."""
    for _ in range(200):
        _brought(wait, two, 1.0, text=0.5, eagle=0.1)
    assert wait.seconds([two], limit=1.0) == pytest.approx(PATIENCE * 0.001, rel=0.02), "the text is"
    clock.now += 0.001
    _answer(wait, two, TEXT)
    held = Held(1.0, frozenset({TEXT}))
    assert wait.seconds([two], limit=1.0, held=lambda session: held) == 0.0
    for _ in range(200):
        _brought(wait, two, 1.5, text=0.5, eagle=0.6)
    assert wait.seconds([two], limit=1.0, held=lambda session: held) > 0.0


def test_the_more_a_session_has_the_less_another_source_is_waited_for(
    wait: TreeWait, clock: _Clock, two: Session
) -> None:
    for _ in range(200):
        _brought(wait, two, 1.5, text=0.5, eagle=0.5)
    clock.now += 0.001
    _answer(wait, two, TEXT)
    assert [_waits_with(wait, two, gain) for gain in (0.0, 0.5, 4.0)] == [True, True, False]


def test_a_newer_tree_of_the_same_source_is_worth_what_it_adds(
    wait: TreeWait, clock: _Clock, session: Session
) -> None:
    """What a drafter pushed while the step ran fits: drafting ahead."""
    for _ in range(50):
        _answers(wait, clock, session, 0.005)
        wait.stepped(0.05)
    for _ in range(200):
        _verified(wait, session, 1.5)
    wait.asked(session)
    assert [_waits_with(wait, session, gain) for gain in (0.1, 1.4, 3.0)] == [True, False, False]


def test_a_source_that_never_answered_a_session_is_not_waited_for(
    wait: TreeWait, clock: _Clock, two: Session
) -> None:
    """Not even in the steps in which a tree is hoped for: the head has no room for the states of this one."""
    other = replace(two, key=SessionKey("b", 1), token_ids=[1, 2, 3], drafting=Drafting(stream_id=1))
    other.num_computed = 2
    for other.steps in range(2 * PROBE_STEPS):
        wait.asked(other)
        if other.steps:
            assert wait.seconds([other], limit=1.0) == pytest.approx(PATIENCE * 0.001, rel=0.02), "the text"
        else:
            assert wait.seconds([other], limit=1.0) == 0.0, "it has sent nothing yet"
        clock.now += 0.001
        _answer(wait, other, TEXT)
        assert wait.seconds([other], limit=1.0) == 0.0
        other.drafting.drop_trees()
        other.token_ids.append(4)
        other.num_computed += 1
    # One late tree, and it is.
    wait.came(other, TokenTree((9,), (-1,), (0.0,), (EAGLE,)), other.length - 1)
    wait.asked(other)
    assert wait.seconds([other], limit=1.0) > 2 * PATIENCE * 0.001
    other.drafting.leave()
    other.drafting.join(1, other.length)
    wait.asked(other)
    assert wait.seconds([other], limit=1.0) == 0.0, "a drafter that joins anew has sent nothing yet"


def test_a_source_that_has_lost_its_states_is_waited_for_no_longer(
    wait: TreeWait, clock: _Clock, two: Session
) -> None:
    for _ in range(100):
        _brought(wait, two, 1.5, text=0.5, eagle=1.0)
    waited = []
    for _ in range(60):
        _answer(wait, two, TEXT)
        two.drafting.drop_trees()
        waited.append(wait.seconds([two], limit=1.0) > 0.0)
        two.token_ids.append(4)
        two.num_computed += 1
        clock.now += 0.05
        wait.asked(two)
    assert waited[0]
    assert not any(waited[30:])


def test_drafters_have_reply_times_of_their_own(wait: TreeWait, clock: _Clock, session: Session) -> None:
    other = replace(session, key=SessionKey("b", 1), token_ids=[1, 2, 3], drafting=Drafting(stream_id=2))
    _heard(other)
    for _ in range(50):
        _answers(wait, clock, session, 0.002)
        _answers(wait, clock, other, 0.020)
    wait.asked(session)
    assert wait.seconds([session], limit=1.0) == pytest.approx(PATIENCE * 0.002, rel=0.02)
    session.drafting.leave()
    wait.asked(other)
    assert wait.seconds([other], limit=1.0) == pytest.approx(PATIENCE * 0.020, rel=0.02)
    wait.forget(2)
    assert wait.seconds([other], limit=1.0) < PATIENCE * 0.020, "nothing is known of a stream that has ended"


def test_what_a_session_waited_for_ends_with_its_last_tree(
    wait: TreeWait, clock: _Clock, two: Session
) -> None:
    assert wait.awaited(two)
    clock.now += 0.002
    _answer(wait, two, TEXT)
    assert wait.exposed(two, 0.002) == pytest.approx(0.002), "the head's is still on its way"
    clock.now += 0.008
    _answer(wait, two, EAGLE)
    assert not wait.awaited(two)
    clock.now += 0.005
    # Another session's tree was waited for, for 5 ms more.
    assert wait.exposed(two, 0.015) == pytest.approx(0.010)
