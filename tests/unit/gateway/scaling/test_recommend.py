"""How many pods are recommended: quickly more, late fewer, never fewer than the load's 95th percentile."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.scaling.history import History
from gateway.scaling.policy import Policy
from gateway.scaling.recommend import (
    drafters_needed,
    recommend_drafters,
    recommend_verifiers,
    verifiers_needed,
)
from gateway.scaling.signals import DrafterSignals, VerifierSignals
from tests.unit.gateway.scaling.followed import POLICY, Followed

# A verifier of 100 full rows and 64 places; at most 70 rows are aimed at.
QUIET = VerifierSignals(full_rows=100.0, max_sessions=64.0)
# A drafter with one session; 0.6 of its time is aimed at.
DRAFTED = DrafterSignals(
    pods=1, busy=0.1, least_busy=0.1, wanted=30, missing=1, drafting=1, sessions=1, max_sessions=100
)


def rows(count: float) -> VerifierSignals:
    return replace(QUIET, rows=count, sessions=count / 2)


@pytest.mark.parametrize(
    ("signals", "needed", "why"),
    [
        (QUIET, 1.0, "one is always kept"),
        (rows(140.0), 2.0, "140.0 rows at a time, of 100 that are full"),
        (replace(QUIET, kv=2.4, sessions=10), 3.0, "2.40 verifiers' worth of KV"),
        (replace(QUIET, sessions=115.2), 2.0, "115.2 sessions, of 64 places each"),
        # Ten run with seven rows each; as many wait for KV, and are taken to need as much.
        (replace(QUIET, rows=70, rows_each=7, sessions=20, without_kv=10), 2.0, "10.0 waiting"),
        (replace(QUIET, kv=0.8, kv_each=0.08, sessions=10, queued=10), 2.0, "10.0 waiting"),
        # No verifier has said what it bears: one is needed to know.
        (VerifierSignals(queued=500.0), 1.0, "500.0 waiting"),
    ],
    ids=["idle", "rows", "kv", "places", "waiting for KV", "queued", "unknown"],
)
def test_verifiers_are_needed_by_what_is_scarcest(signals: VerifierSignals, needed: float, why: str) -> None:
    need = verifiers_needed(signals, Policy())
    assert need.replicas == pytest.approx(needed)
    assert why in need.why


@pytest.mark.parametrize(
    ("signals", "needed", "why"),
    [
        (DrafterSignals(), 0.0, "no session runs"),
        (DrafterSignals(pods=1, sessions=40, busy=0.3), 0.0, "no tree would pay"),
        (DrafterSignals(wanted=0.5, missing=0.5, sessions=1), 1.0, "100% missing"),
        (DRAFTED, 1.0, "30.0 trees a second wanted"),
        (replace(DRAFTED, pods=2, busy=1.8, least_busy=0.9), 3.0, "1.80 drafters' work"),
        # All work much and are late: what was missing is work, too.
        (replace(DRAFTED, busy=0.9, least_busy=0.9, missing=15), 3.0, "50% missing"),
        # Late though idle: not for want of drafters.
        (replace(DRAFTED, missing=29), 1.0, "97% missing"),
        # One of two has just come, and sessions keep the drafter that they have.
        (replace(DRAFTED, pods=2, busy=0.9, least_busy=0.0, missing=15), 1.5, "0.90 drafters' work"),
        (replace(DRAFTED, drafting=180, sessions=180), 2.0, "180.0 sessions, of 100 places each"),
    ],
    ids=["idle", "no gain", "from zero", "little", "busy", "starving", "late", "new", "places"],
)
def test_drafters_are_needed_by_work_and_starvation(signals: DrafterSignals, needed: float, why: str) -> None:
    need = drafters_needed(signals, Policy(), History(since=0.0))
    assert need.replicas == pytest.approx(needed)
    assert why in need.why


def test_more_are_recommended_at_once_and_fewer_after_the_whole_window() -> None:
    pool = Followed(1)
    assert pool.verifiers(rows(30)) == 1
    assert pool.verifiers(rows(350)) == 5
    assert "needed" in pool.told[-1].reason
    assert pool.verifiers(rows(30), seconds=59) == 5
    assert pool.told[-1].reason == "scaled out not long ago"
    # The minute in which five were needed is over.
    assert pool.verifiers(rows(30), seconds=2) == 1
    assert any("95 %" in each.reason for each in pool.told[-2:])


def test_nothing_is_scaled_in_before_the_load_is_known_for_long_enough() -> None:
    pool = Followed(3)
    assert pool.verifiers(QUIET, seconds=60) == 3
    assert pool.told[-1].reason == "the load is not known for long enough to scale in"
    assert pool.verifiers(QUIET, seconds=2) == 1


def test_a_load_within_the_tolerance_changes_nothing() -> None:
    pool = Followed(2)
    for second in range(600):
        pool.verifiers(rows(150 if second % 7 else 133))
    assert pool.changes == []


def test_a_peak_of_a_moment_does_not_hold_pods_for_ever_nor_bring_them_again_and_again() -> None:
    pool = Followed(1)
    # Every 30 seconds a second of five times the load.
    for second in range(600):
        pool.verifiers(rows(300 if second % 30 == 0 else 60))
    scale_ins = [at for at, before, after in pool.changes if after < before]
    # The peaks are 3 % of the time: pods for them stay a window, and come back with the next peak.
    assert all(later - earlier >= POLICY.in_seconds for earlier, later in pairwise(scale_ins))


def test_drafters_go_to_zero_when_nothing_runs_and_return_when_it_does() -> None:
    pool = Followed(2)
    busy = replace(DRAFTED, pods=2, busy=0.8, least_busy=0.4)
    assert pool.drafters(busy, seconds=100) == 2
    assert pool.drafters(DrafterSignals(pods=2), seconds=50) == 2
    assert pool.drafters(DrafterSignals(pods=2), seconds=12) == 0
    assert "no session runs" in pool.told[-1].reason
    # There is no drafter to measure: what verifiers want is enough.
    assert pool.drafters(DrafterSignals(wanted=20, missing=20, drafting=1, sessions=1)) == 1


def test_who_drafts_now_and_then_keeps_one() -> None:
    pool = Followed(1)
    for second in range(600):
        pool.drafters(DRAFTED if second % 50 == 0 else DrafterSignals(pods=1))
    assert pool.changes == []


def test_drafters_go_where_drafts_do_not_pay_and_one_is_tried_again_later() -> None:
    policy = replace(POLICY, retry_seconds=300.0)
    pool = Followed(1, policy)
    full = DrafterSignals(pods=1, sessions=60, max_sessions=100)
    assert pool.drafters(full, seconds=62) == 0
    assert pool.drafters(replace(full, pods=0), seconds=297) == 0
    assert pool.drafters(replace(full, pods=0), seconds=3) == 1
    assert any("tried again" in each.reason for each in pool.told[-3:])
    # They still do not pay.
    assert pool.drafters(full, seconds=62) == 0
    # With no session there is nobody to try it for.
    assert pool.drafters(DrafterSignals(), seconds=600) == 0


def test_a_number_of_drafters_that_starved_is_not_gone_back_to_under_the_same_load() -> None:
    pool = Followed(1)
    # Alone it is half busy and always late; two are in time, and have less to do than one should.
    late = replace(DRAFTED, busy=0.5, least_busy=0.5, missing=27)
    served = replace(DRAFTED, pods=2, busy=0.5, least_busy=0.25, missing=1)
    assert pool.drafters(late) == 2
    assert pool.drafters(served, seconds=600) == 2
    # A third of the load is no longer known to starve one.
    assert pool.drafters(replace(served, wanted=10, missing=0), seconds=62) == 1
    assert len(pool.changes) == 2


# Any load, given second by second in verifiers' worth.
LOADS = st.lists(st.floats(0.0, 8.0), min_size=1, max_size=200)
SIGNALS = st.builds(
    VerifierSignals,
    rows=st.floats(0, 1000),
    kv=st.floats(0, 10),
    sessions=st.floats(0, 500),
    queued=st.floats(0, 100),
    without_kv=st.floats(0, 100),
    rows_each=st.floats(1, 10),
    kv_each=st.floats(0, 1),
    full_rows=st.just(100.0),
    max_sessions=st.just(64.0),
)
DRAFTERS = st.builds(
    DrafterSignals,
    pods=st.floats(0, 10),
    busy=st.floats(0, 10),
    least_busy=st.floats(0, 1),
    wanted=st.floats(0, 1000),
    missing=st.just(0.0),
    drafting=st.floats(0, 500),
    sessions=st.floats(0, 500),
    max_sessions=st.just(100.0),
)
PASTS = st.lists(st.floats(0.0, 8.0), min_size=0, max_size=80).map(
    lambda needs: _past(needs),
)


def _past(needs: list[float]) -> History:
    history = History(since=0.0)
    for at, need in enumerate(needs):
        history = history.with_need(float(at), need, keep_seconds=POLICY.in_seconds)
    return history


@given(LOADS)
def test_whatever_the_load_it_is_borne_and_nothing_flaps(loads: list[float]) -> None:
    pool = Followed(1)
    for load in loads:
        count = pool.verifiers(rows(70 * load))
        needed = pool.told[-1].needed
        assert needed <= count * (1 + POLICY.tolerance) + 1e-6
        if pool.changes and pool.changes[-1][0] == pool.now - 1 and pool.changes[-1][2] < pool.changes[-1][1]:
            # Scaled in just now: for 95 % of the window what is left would have been enough.
            enough = sum(each.replicas <= count + 1e-6 for each in pool.history.needed)
            assert enough >= 0.95 * len(pool.history.needed)
    outs = [at for at, before, after in pool.changes if after > before]
    ins = [at for at, before, after in pool.changes if after < before]
    assert all(scaled_in - out >= POLICY.in_seconds for scaled_in in ins for out in outs if out <= scaled_in)


@given(
    SIGNALS,
    st.sampled_from(["rows", "kv", "sessions", "queued", "without_kv"]),
    st.floats(0, 500),
    st.integers(0, 9),
    PASTS,
)
def test_more_load_never_asks_for_fewer_verifiers(
    signals: VerifierSignals, field: str, more: float, current: int, past: History
) -> None:
    heavier = replace(signals, **{field: getattr(signals, field) + more})
    now = 100.0
    less = recommend_verifiers(signals, current, POLICY, past, now)
    assert recommend_verifiers(heavier, current, POLICY, past, now).replicas >= less.replicas
    assert less.replicas >= min(current, 1)


@given(
    DRAFTERS,
    st.sampled_from(["busy", "wanted", "drafting"]),
    st.floats(0, 500),
    st.floats(0, 1),
    st.integers(0, 9),
    PASTS,
)
def test_more_load_or_more_starvation_never_asks_for_fewer_drafters(
    signals: DrafterSignals, field: str, more: float, missing: float, current: int, past: History
) -> None:
    now = 100.0
    signals = replace(signals, missing=missing * signals.wanted / 2)
    less = recommend_drafters(signals, current, POLICY, past, now)
    starved = replace(signals, missing=2 * signals.missing)
    assert recommend_drafters(starved, current, POLICY, past, now).replicas >= less.replicas
    # As large a share of the trees is missing.
    heavier = replace(signals, **{field: getattr(signals, field) + more})
    heavier = replace(heavier, missing=signals.starvation * heavier.wanted)
    assert recommend_drafters(heavier, current, POLICY, past, now).replicas >= less.replicas


@given(PASTS, st.lists(st.floats(0, 4), min_size=80, max_size=80), st.integers(1, 9))
def test_a_heavier_past_never_asks_for_fewer(past: History, more: list[float], current: int) -> None:
    heavier = replace(
        past,
        needed=tuple(
            replace(each, replicas=each.replicas + add) for each, add in zip(past.needed, more, strict=False)
        ),
    )
    now = 80.0
    assert (
        recommend_verifiers(QUIET, current, POLICY, heavier, now).replicas
        >= recommend_verifiers(QUIET, current, POLICY, past, now).replicas
    )


def test_the_p95_is_a_need_that_was_there() -> None:
    past = _past([1.0] * 57 + [5.0] * 3)
    assert (past.p95(), past.most()) == (1.0, 5.0)
    assert _past([1.0] * 56 + [5.0] * 4).p95() == 5.0
    assert math.isinf(History(since=0.0).scaled_out)
