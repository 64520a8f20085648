"""Work that nobody asked for: never more than its share, and of several peers' none more than another's."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from verifier_svc.fairness import FairQueue, WorkBudget

SHARE, BURST = 0.05, 0.25


@dataclass
class Clock:
    now: float = 0.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Crowd:
    """Peers that always want more, each with as many streams as it likes; time passes as they wait."""

    clock: Clock = field(default_factory=Clock)
    served: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.queue = FairQueue(share=SHARE, burst=BURST, clock=self.clock)
        self._asked: dict[int, tuple[str, float]] = {}

    def ask(self, peer: str, seconds: float) -> None:
        ticket = self.queue.ask(peer, seconds)
        if ticket is None:
            self._count(peer, seconds)
        else:
            self._asked[ticket] = peer, seconds

    def serve_until(self, end: float) -> None:
        """Serve whoever waits; each asks for the same again as soon as it was served."""
        while True:
            while (ticket := self.queue.serve()) is not None:
                peer, seconds = self._asked.pop(ticket)
                self._count(peer, seconds)
                self.ask(peer, seconds)
            due = self.queue.due_in()
            if due is None or self.clock.now + due >= end:
                self.clock.now = end
                return
            self.clock.now += max(due, 1e-6)

    def _count(self, peer: str, seconds: float) -> None:
        self.served[peer] = self.served.get(peer, 0.0) + seconds


costs = st.floats(1e-4, 0.02)


@given(st.lists(st.tuples(st.integers(0, 9), costs), min_size=1, max_size=40))
def test_no_more_passes_than_the_share_of_the_time(asked: list[tuple[int, float]]) -> None:
    crowd = Crowd()
    for peer, seconds in asked:
        for _ in range(5):
            crowd.ask(str(peer), seconds)
    crowd.serve_until(60.0)
    most = max(seconds for _, seconds in asked)
    # What is let pass may end a little behind its time, never more than one thing.
    assert sum(crowd.served.values()) <= BURST + SHARE * 60.0 + most + 1e-6


@given(
    st.lists(st.tuples(st.integers(1, 30), costs), min_size=2, max_size=6),
)
def test_peers_that_wait_are_served_alike_however_many_streams_they_have(
    peers: list[tuple[int, float]],
) -> None:
    crowd = Crowd()
    # Nothing is left of what may pass at once.
    crowd.ask("before", BURST)
    for peer, (streams, seconds) in enumerate(peers):
        for _ in range(streams):
            crowd.ask(str(peer), seconds)
    crowd.serve_until(200.0)
    del crowd.served["before"]
    fair = sum(crowd.served.values()) / len(peers)
    # Each thing is whole, and as many as a peer has streams may stand in line at first.
    slack = sum(seconds for _, seconds in peers) + max(streams * seconds for streams, seconds in peers)
    assert all(abs(served - fair) <= slack for served in crowd.served.values())


def test_one_that_seldom_asks_waits_for_none_of_a_floods_streams() -> None:
    crowd = Crowd()
    for _ in range(1000):
        crowd.ask("flood", 0.004)
    crowd.serve_until(10.0)
    crowd.ask("honest", 0.001)
    before = crowd.served["flood"]
    while "honest" not in crowd.served:
        crowd.serve_until(crowd.clock.now + 0.01)
    assert crowd.served["flood"] - before <= 2 * 0.004 + 1e-9


def test_what_those_who_left_owe_is_paid_for() -> None:
    clock = Clock()
    queue = FairQueue(share=SHARE, burst=BURST, clock=clock)
    for connection in range(100):
        queue.owe(f"flood {connection}", 0.01)
    assert queue.ask("flood 100", 0.001) is not None
    assert queue.due_in() == pytest.approx((100 * 0.01 - BURST) / SHARE)


def test_after_a_rest_nobody_waits() -> None:
    clock = Clock()
    queue = FairQueue(share=SHARE, burst=BURST, clock=clock)
    asked = 0
    while queue.ask("d", 0.01) is None:
        asked += 1
    assert asked == pytest.approx(BURST / 0.01, abs=1)
    clock.now += 100
    assert queue.serve() is not None
    assert queue.ask("d", 0.01) is None


async def test_who_goes_away_while_it_waits_holds_up_nobody() -> None:
    work = WorkBudget(share=10.0, burst=0.01)
    # A debt of a second, so that all have to wait however slowly they come; and "other" comes behind them.
    await work.pay("other", 10.0)
    waiting = [asyncio.create_task(work.pay("d", 100.0)) for _ in range(200)]
    await asyncio.sleep(0)
    for task in waiting:
        task.cancel()
    await asyncio.wait(waiting)
    await asyncio.wait_for(work.pay("other", 0.01), 5)


@given(costs, st.floats(10.0, 1e6))
def test_a_long_rest_saves_up_one_burst_and_no_more(cost: float, rest: float) -> None:
    crowd = Crowd()
    crowd.clock.now = rest
    for _ in range(round(2 * BURST / cost) + 2):
        crowd.ask("peer", cost)
    # Who finds some of it left is let in for a whole piece of work.
    assert crowd.served["peer"] <= BURST + cost
