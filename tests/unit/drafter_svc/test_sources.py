"""What each source proposes, how it is bounded, and how its confidence is measured."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from drafter_svc.hypothesis import Hypothesis, Lesson, Row
from drafter_svc.methods.branches import Branches
from drafter_svc.methods.frequency import Frequency
from drafter_svc.methods.lookup import SuffixIndex
from drafter_svc.methods.merged import HitRates
from drafter_svc.methods.recycling import Recycling, Room
from paceline.sampling import SamplingParams
from paceline.session import SessionKey

ODDS = (0.0,) * 17


def session(*ids: int, session_id: str = "s") -> Hypothesis:
    return Hypothesis(SessionKey(session_id, 1), SamplingParams(max_tokens=8), ids)


def test_a_longer_match_is_graded_above_a_shorter() -> None:
    index = SuffixIndex([1, 2, 3, 4, 9, 3, 5, 1, 2, 3])
    index.extend()
    grades = index((1, 2, 3), 0)
    assert set(grades) == {4, 5}
    assert grades[4] > grades[5]


@given(st.lists(st.integers(0, 3), min_size=1, max_size=50), st.integers(1, 49))
def test_an_index_extended_in_parts_equals_one_built_at_once(ids: list[int], cut: int) -> None:
    grown: list[int] = ids[:cut]
    parts, whole = SuffixIndex(grown), SuffixIndex(ids)
    parts.extend()
    grown.extend(ids[cut:])
    parts.extend()
    whole.extend()
    context = tuple(ids[-4:])
    assert parts(context, 0) == whole(context, 0)


def test_recycling_grades_the_sessions_own_rows_apart() -> None:
    table = Recycling(1, ODDS, Room(10))
    own, other = session(1, 2), session(1, 2, session_id="other")
    table.observe(own, Lesson(2, (), (Row((1, 2), (7, 8), 2),)))
    assert table.proposer(own)((2,), 0) == {7: 1, 8: 2}
    assert set(table.proposer(other)((2,), 0)) == {7, 8}
    assert table.proposer(other)((2,), 0) != table.proposer(own)((2,), 0)
    assert not table.proposer(own)((3,), 0)


def test_recycling_is_bounded_and_forgets_the_oldest() -> None:
    table = Recycling(1, ODDS, Room(2))
    known = session(1)
    for token in (1, 2, 1, 3):
        table.observe(known, Lesson(1, (), (Row((token,), (7,), 1),)))
    propose = table.proposer(known)
    assert [bool(propose((token,), 0)) for token in (1, 2, 3)] == [True, False, True]


def test_branches_propose_what_rejected_rows_said_for_the_same_position() -> None:
    source = Branches(ODDS)
    known = session(1, 2, 9)
    rows = (Row((1, 2), (9, 5, 6), 2), Row((1, 2, 5), (7, 8, 4), 3), Row((1, 2, 5, 7), (3, 1, 2), 4))
    source.observe(known, Lesson(2, (9,), rows))
    propose = source.proposer(known)
    assert list(propose((1, 2, 9), 0)) == [7, 8, 4]
    assert list(propose((1, 2, 9, 7), 1)) == [3, 1, 2]
    assert not propose((1, 2, 9, 7, 3), 2)
    source.forget("s")
    assert not source.proposer(known)((1, 2, 9), 0)


def test_frequency_proposes_the_commonest_ids_and_follows_the_traffic() -> None:
    source = Frequency(ODDS)
    known = session(1)
    source.observe(known, Lesson(1, (4,) * 12_000 + (5,) * 3, ()))
    assert source.proposer(known)((1,), 0) == {4: 1, 5: 2}
    for _ in range(4):
        source.observe(known, Lesson(1, (6,) * 9_000, ()))
    assert next(iter(source.proposer(known)((1,), 0))) == 6


@given(st.lists(st.booleans(), max_size=300))
def test_confidence_stays_a_log_probability(hits: list[bool]) -> None:
    rates = HitRates([Recycling(1, (0.0, 5.0, -5.0), Room(1))], bias=0.0)
    for hit in hits:
        rates.count(1, hit)
    assert -math.inf < rates.confidence(1) <= 0
    assert rates.confidence(2) < rates.confidence(0)


def test_confidence_moves_from_the_prior_to_what_is_measured() -> None:
    rates = HitRates([Recycling(1, (0.0, 2.0), Room(1))], bias=0.0)
    assert rates.confidence(1) == pytest.approx(math.log(1 / (1 + math.exp(-2.0))))
    for trial in range(20_000):
        rates.count(1, trial % 4 == 0)
    assert rates.confidence(1) == pytest.approx(math.log(0.25), abs=0.05)


@given(
    known=st.dictionaries(st.integers(0, 9), st.integers(1, 9000), max_size=6),
    committed=st.lists(st.integers(0, 9), max_size=60),
)
def test_common_ids_that_were_there_at_the_start_count_like_those_that_came(
    known: dict[int, int], committed: list[int]
) -> None:
    begun, told = Frequency(ODDS), Frequency(ODDS)
    table = np.array(list(known.items()), dtype=np.int32).reshape(-1, 2)
    begun.restore({"counts": table})
    fresh = begun.fresh()
    told._counts, told._total = dict(known), sum(known.values())
    told._best = told._ranked(known)
    for token in committed:
        lesson = Lesson(1, (token,), ())
        for each in (fresh, told):
            each.observe(session(1), lesson)
        assert fresh.proposer(session(1))((1,), 0) == told.proposer(session(1))((1,), 0)
    assert dict(fresh.tables()["counts"].tolist()) == dict(told.tables()["counts"].tolist())
    assert (begun.tables()["counts"] == table).all()
