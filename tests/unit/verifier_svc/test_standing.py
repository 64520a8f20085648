from __future__ import annotations

import pytest

from verifier_svc.standing import AsideReason, Standings


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def standings(clock: Clock) -> Standings:
    return Standings(clock)


def seconds_aside(standings: Standings, clock: Clock) -> float:
    """How long the drafter "d" stays aside from now on; that time is over then."""
    start = clock.now
    while standings.reason_aside("d"):
        clock.now += 1
    return clock.now - start


def garbage(standings: Standings) -> None:
    for _ in range(32):
        standings.tree("d", sound=False)


def test_one_that_sends_garbage_is_put_aside_and_comes_back(standings: Standings, clock: Clock) -> None:
    garbage(standings)
    assert standings.reason_aside("d") is AsideReason.GARBAGE
    assert standings.aside() == [" (d)"]
    assert seconds_aside(standings, clock) > 0
    assert standings.aside() == []


def test_each_time_is_twice_as_long_up_to_a_limit(standings: Standings, clock: Clock) -> None:
    times = []
    for _ in range(10):
        garbage(standings)
        times.append(seconds_aside(standings, clock))
    assert times[1] == 2 * times[0]
    assert times[2] == 4 * times[0]
    assert times[-1] == times[-2] == 3600


def test_some_broken_trees_among_sound_ones_are_borne(standings: Standings) -> None:
    for index in range(1000):
        standings.tree("d", sound=index % 2 == 0)
    assert standings.reason_aside("d") is None


def test_one_that_never_helps_is_put_aside(standings: Standings) -> None:
    for _ in range(512):
        standings.verified("d", 0)
        standings.verified("other", 1)
    assert standings.reason_aside("d") is AsideReason.USELESS
    assert standings.reason_aside("other") is None


def test_a_little_help_is_enough(standings: Standings) -> None:
    for index in range(5120):
        standings.verified("d", int(index % 50 == 0))
    assert standings.reason_aside("d") is None


def test_peers_are_not_kept_without_end(standings: Standings) -> None:
    for index in range(5000):
        standings.named(f"peer {index}", "d1")
        for _ in range(32):
            standings.unasked(f"peer {index}")
    assert len(standings.aside()) == 256
    assert standings.reason_aside("peer 0") is None


def test_one_that_says_what_nothing_asked_for_is_put_aside(standings: Standings) -> None:
    for _ in range(32):
        standings.unasked("d")
    assert standings.reason_aside("d") is AsideReason.FLOOD


def test_a_flood_between_sound_trees_is_put_aside_by_its_share(standings: Standings) -> None:
    for index in range(320):
        standings.tree("d", sound=True)
        if index % 2:
            standings.unasked("d")
    assert standings.reason_aside("d") is None
    for _ in range(64):
        standings.tree("d", sound=True)
        standings.unasked("d")
        standings.unasked("d")
    assert standings.reason_aside("d") is AsideReason.FLOOD


def test_trees_that_cannot_be_computed_are_borne_once_or_twice(standings: Standings) -> None:
    standings.harmed("d")
    standings.harmed("d")
    assert standings.reason_aside("d") is None
    standings.harmed("d")
    assert standings.reason_aside("d") is AsideReason.HARMFUL


def test_a_name_is_nobodys_fault(standings: Standings) -> None:
    """Who is put aside is told by name, and known by what it is."""
    standings.named("one", "d1")
    standings.named("another", "d1")
    for _ in range(32):
        standings.unasked("another")
    assert standings.reason_aside("one") is None
    assert standings.aside() == ["d1 (another)"]


def test_those_aside_are_told_of_as_it_happens(clock: Clock) -> None:
    told: list[str] = []
    standings = Standings(clock, told.append)
    garbage(standings)
    assert told == ["d"]
    assert standings.seconds_aside("d") == 60
