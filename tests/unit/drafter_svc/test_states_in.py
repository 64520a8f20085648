"""Hidden states reach the methods once and in order, whatever comes; what was taken in is counted."""

from __future__ import annotations

from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drafter_svc.hello import WINDOW_BYTES
from drafter_svc.hypothesis import Hypothesis
from drafter_svc.methods.base import Target
from drafter_svc.rounds import Counters, Rounds, TreeLimits
from drafter_svc.seat import States, first_lacked
from drafter_svc.states_in import StatesIn
from drafter_svc.thread_runner import ThreadRunner
from paceline.features import MAX_CHUNK_BYTES, NO_FEATURES, FeatureChunk, FeatureGrant
from paceline.net import wire
from paceline.sampling import SamplingParams
from paceline.session import SessionKey
from paceline.v1 import verifier_pb2
from tests.echo_method import LAYER, WEIGHTS, EchoFactory
from tests.waiting import wait_until

KEY = SessionKey("s", 1)
LENGTH = 40
WIDE = FeatureGrant((LAYER,), MAX_CHUNK_BYTES // 4, "float32")


@asynccontextmanager
async def states_in(grant: FeatureGrant) -> AsyncIterator[tuple[StatesIn, EchoFactory, list[int]]]:
    """With a session of `LENGTH` ids that has joined; what was taken in, each time that it changed."""
    factory, thread, told = EchoFactory(), ThreadPoolExecutor(1), list[int]()
    rounds = Rounds(Counters())
    runner = ThreadRunner(factory, Target("m", "f", 1 << 20, WEIGHTS, grant), thread)
    rounds.attach(Hypothesis(KEY, SamplingParams(max_tokens=9), range(LENGTH)))
    rounds.welcome([runner], TreeLimits(1 << 20, nodes=8, depth=4))
    made = StatesIn(grant, rounds, [runner], lambda: told.append(made.untold))
    await runner.made()
    try:
        yield made, factory, told
    finally:
        thread.shutdown()


def chunk(grant: FeatureGrant, position: int, count: int, key: SessionKey = KEY) -> verifier_pb2.FeatureChunk:
    states = bytes(count * grant.position_bytes)
    return wire.chunk_to_proto(FeatureChunk(key, position, count, states))


@pytest.mark.parametrize(
    ("chunks", "known"),
    [
        ([(0, 5), (5, 3)], 8),
        ([(0, 5), (3, 5)], 8),
        ([(0, 5), (0, 5)], 5),
        ([(0, 5), (6, 3)], 5),
        ([(0, LENGTH - 1)], LENGTH - 1),
        # The last id has no key yet; and who speaks of more has not told of it.
        ([(0, LENGTH)], 0),
    ],
    ids=["in order", "overlapping", "twice", "after a gap", "all", "too far"],
)
async def test_a_method_gets_each_position_once(chunks: list[tuple[int, int]], known: int) -> None:
    grant = FeatureGrant((LAYER,), 2, "float32")
    async with states_in(grant) as (made, factory, told):
        for position, count in chunks:
            made.take(chunk(grant, position, count))
        await wait_until(lambda: len(told) == len(chunks), "all are taken in")
        session = Hypothesis(KEY, SamplingParams(max_tokens=9), range(LENGTH))
        assert factory.methods[0].lacks_from(session) == known
        # Of use or not: the verifier may send as many again.
        assert made.tell() == sum(count for _, count in chunks) * grant.position_bytes
        assert made.untold == 0


async def test_more_than_the_window_is_refused() -> None:
    async with states_in(WIDE) as (made, factory, _):
        method = factory.methods[0]
        method.go.clear()
        most = (WINDOW_BYTES + MAX_CHUNK_BYTES) // WIDE.position_bytes
        for number in range(most):
            made.take(chunk(WIDE, number, 1))
        with pytest.raises(wire.WireError, match="window"):
            made.take(chunk(WIDE, most, 1))
        method.go.set()


@given(
    start=st.integers(0, 20),
    chunks=st.lists(st.tuples(st.integers(0, 60), st.integers(1, 10)), max_size=30),
)
def test_what_comes_goes_on_where_the_last_of_it_ended(start: int, chunks: list[tuple[int, int]]) -> None:
    states = States()
    states.asked(start)
    reached = start
    for position, count in chunks:
        used = states.came(position, count)
        assert used == (position <= reached < position + count)
        if used:
            reached = position + count
        assert states.reach(reached)
        assert not states.reach(reached + 1)


def test_steps_are_counted_until_all_states_have_come() -> None:
    states = States()
    states.asked(0)
    # The answer to the join is no step.
    states.heard()
    assert states.came(0, 20)
    assert states.caught_up(40) is None
    states.heard()
    assert states.came(20, 19)
    assert states.caught_up(41) is None
    assert states.came(39, 1)
    assert states.caught_up(41) == 1
    # Once for each join.
    states.heard()
    assert states.caught_up(40) is None
    states.asked(0)
    states.heard()
    assert states.came(0, 41)
    assert states.caught_up(42) == 0
    states.asked(NO_FEATURES)
    assert states.caught_up(42) is None


@pytest.mark.parametrize(
    ("next_", "lacked", "wanted"),
    [
        (10, [10], None),
        (10, [10, None], None),
        (10, [0], 0),
        (10, [10, 4], 4),
        (10, [None, None], NO_FEATURES),
        (NO_FEATURES, [None], None),
        (NO_FEATURES, [7], 7),
        # It takes in what came; what it lacks is on its way.
        (10, [12], None),
    ],
)
def test_states_are_asked_for_anew_where_a_method_lacks_what_was_sent(
    next_: int, lacked: list[int | None], wanted: int | None
) -> None:
    states = States(next=next_)
    assert states.ask_from(lacked) == wanted
    states.under_way = 1
    assert states.ask_from(lacked) is None


def test_they_are_not_asked_for_again_and_again() -> None:
    states = States()
    states.asked(10)
    assert states.ask_from([0]) is None
    assert first_lacked([None, 5, 3]) == 3
