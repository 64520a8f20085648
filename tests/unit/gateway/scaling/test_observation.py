"""What the fleet's counts say of the load between two answers."""

from __future__ import annotations

import pytest

from gateway.scaling.observation import Observation, Tier
from gateway.scaling.rates import Watched
from tests.unit.gateway.scaling.fleets import FakeDrafter, FakeFleet, FakeVerifier

LIMIT = 0.2


@pytest.fixture
def verifier() -> FakeVerifier:
    return FakeVerifier()


@pytest.fixture
def drafter() -> FakeDrafter:
    return FakeDrafter()


@pytest.fixture
def fleet(verifier: FakeVerifier, drafter: FakeDrafter) -> FakeFleet:
    return FakeFleet({"v": verifier}, {"d": drafter})


def test_rates_are_of_the_time_between_two_answers(verifier: FakeVerifier) -> None:
    watched = Watched(0.0)
    verifier.goes_on(100, busy=1.0, sessions=4, steps=1000, rows=9000)
    watched.take(verifier.status, 0.0)
    # Two seconds, busy for one: 20 steps of 4 sessions' rows and 12 nodes each.
    verifier.goes_on(2, busy=0.5, sessions=4, steps=20, rows=320, nodes=240, wanted=60, missing=15)
    watched.take(verifier.status, 2.0)
    rates = watched.rates
    assert (rates.busy, rates.rows, rates.wanted, rates.missing) == pytest.approx((0.5, 2.0, 30.0, 7.5))
    assert rates.wanting == pytest.approx(60 / 80)
    # The same answer again says nothing new, and does not make the pod idle.
    watched.take(verifier.status, 3.0)
    assert (watched.rates, watched.heard) == (rates, 2.0)


def test_counts_of_a_pod_that_was_started_anew_begin_at_zero(verifier: FakeVerifier) -> None:
    watched = Watched(0.0)
    verifier.goes_on(100, busy=0.1, steps=1000, rows=1000)
    watched.take(verifier.status, 0.0)
    again = FakeVerifier()
    again.goes_on(4, busy=1.0, steps=8, rows=64)
    watched.take(again.status, 1.0)
    assert (watched.rates.busy, watched.rates.rows) == (1.0, 8.0)


def test_a_pools_signals_are_sums_over_its_pods(fleet: FakeFleet, verifier: FakeVerifier) -> None:
    other, apart = FakeVerifier(), FakeVerifier(pool="large")
    fleet.verifiers |= {"other": other, "apart": apart}
    seen = Observation(60.0)
    seen.look(fleet, 0.0)
    verifier.goes_on(busy=1.0, sessions=10, steps=10, rows=80, kv=400)
    other.goes_on(busy=0.5, sessions=4, steps=10, rows=80, kv=200, waiting=2)
    apart.goes_on(busy=1.0, sessions=30, steps=10, rows=300)
    seen.look(fleet, 1.0)
    signals = seen.verifiers("default", queued=6)
    assert (signals.rows, signals.kv, signals.sessions, signals.without_kv) == pytest.approx((12, 0.6, 14, 2))
    # Two thirds of the pods that a request may go to are of this pool.
    assert signals.queued == 4
    assert (signals.rows_each, signals.kv_each) == pytest.approx((1.0, 0.05))
    assert (signals.full_rows, signals.max_sessions) == (32, 64)
    assert seen.verifiers("large", queued=6).rows == 30
    assert set(seen.pools(Tier.VERIFIER)) == {"default", "large"}


def test_a_pod_that_drains_is_load_and_no_pod(fleet: FakeFleet, verifier: FakeVerifier) -> None:
    seen = Observation(60.0)
    seen.look(fleet, 0.0)
    verifier.goes_on(busy=1.0, sessions=10, steps=10, rows=80)
    verifier.status.draining = True
    seen.look(fleet, 1.0)
    assert seen.pods(Tier.VERIFIER, "default") == 0
    assert seen.verifiers("default", 0).rows == 8


def test_a_pod_that_does_not_answer_counts_as_it_was_for_a_while(
    fleet: FakeFleet, verifier: FakeVerifier
) -> None:
    seen = Observation(60.0)
    seen.look(fleet, 0.0)
    verifier.goes_on(busy=1.0, sessions=10, steps=10, rows=80)
    seen.look(fleet, 1.0)
    seen.look(fleet, 60.0)
    assert (seen.pods(Tier.VERIFIER, "default"), seen.verifiers("default", 0).rows) == (1, 8)
    seen.look(fleet, 62.0)
    assert (seen.pods(Tier.VERIFIER, "default"), seen.verifiers("default", 0).rows) == (0, 0)


def test_a_verifier_of_another_model_is_none_of_ours(fleet: FakeFleet, verifier: FakeVerifier) -> None:
    verifier.misfit = "serves another model"
    seen = Observation(60.0)
    seen.look(fleet, 0.0)
    assert seen.pods(Tier.VERIFIER, "default") == 0
    assert (seen.heard, seen.unheard) == (1, 1)


def test_drafters_are_wanted_by_what_verifiers_miss(
    fleet: FakeFleet, verifier: FakeVerifier, drafter: FakeDrafter
) -> None:
    other = fleet.drafters["other"] = FakeDrafter()
    seen = Observation(60.0)
    seen.look(fleet, 0.0)
    verifier.goes_on(busy=1.0, sessions=10, steps=20, rows=200, wanted=100, missing=40)
    drafter.goes_on(busy=0.8, sessions=6)
    other.goes_on(busy=0.2, sessions=4)
    seen.look(fleet, 1.0)
    signals = seen.drafters("default", starvation_limit=LIMIT)
    assert (signals.pods, signals.busy, signals.least_busy) == pytest.approx((2, 1.0, 0.2))
    assert (signals.wanted, signals.missing, signals.starvation) == pytest.approx((100, 40, 0.4))
    # Half of the sessions' steps wanted a tree.
    assert (signals.drafting, signals.sessions, signals.max_sessions) == (5, 10, 100)


def test_without_any_drafter_every_wanted_tree_is_missing(fleet: FakeFleet, verifier: FakeVerifier) -> None:
    fleet.drafters.clear()
    seen = Observation(60.0)
    seen.look(fleet, 0.0)
    verifier.goes_on(busy=1.0, sessions=3, steps=20, rows=60, wanted=60, missing=60)
    seen.look(fleet, 1.0)
    signals = seen.drafters("any", starvation_limit=LIMIT)
    assert (signals.pods, signals.wanted, signals.starvation) == (0, 60, 1.0)


@pytest.mark.parametrize(("missing", "spare"), [(10, 0.0), (50, 50.0)], ids=["served", "starving"])
def test_pools_of_drafters_share_what_is_wanted(
    fleet: FakeFleet, verifier: FakeVerifier, drafter: FakeDrafter, missing: int, spare: float
) -> None:
    gpu = fleet.drafters["gpu"] = FakeDrafter(pool="gpu")
    seen = Observation(60.0)
    seen.look(fleet, 0.0)
    verifier.goes_on(busy=1.0, sessions=4, steps=25, rows=100, wanted=100, missing=missing)
    drafter.goes_on(sessions=1)
    gpu.goes_on(sessions=3)
    seen.look(fleet, 1.0)
    assert seen.drafters("default", starvation_limit=LIMIT).wanted == 25
    assert seen.drafters("gpu", starvation_limit=LIMIT).wanted == 75
    # A pool without a pod is wanted only where the others leave sessions without trees.
    assert seen.drafters("spare", starvation_limit=LIMIT).wanted == spare
