"""The closed forms against one another, and against the example they were published with."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.drafters.formula import Parts, cached, plain, pushed, synchronous

PARTS = st.builds(
    Parts,
    st.floats(1.0, 8.0),
    st.floats(0.001, 0.1),
    st.floats(0.001, 0.1),
    st.floats(0.0, 0.1),
    st.floats(0.0, 1.0),
)


# Steps of 30 ms and drafts of 18, at four round trips.
@pytest.mark.parametrize(
    ("round_trip", "rates"),
    [(0.0005, (71, 102, 107)), (0.005, (65, 90, 105)), (0.020, (51, 65, 99)), (0.060, (32, 37, 88))],
)
def test_the_known_example(round_trip: float, rates: tuple[int, int, int]) -> None:
    parts = Parts(3.47, 0.028, 0.030, 0.018, 0.8)
    made = tuple(form(parts, round_trip) for form in (synchronous, cached, pushed))
    assert made == pytest.approx(rates, rel=0.03)


@given(PARTS, st.floats(0.0, 0.2))
def test_hiding_more_is_never_slower(parts: Parts, round_trip: float) -> None:
    assert synchronous(parts, round_trip) <= cached(parts, round_trip) * (1 + 1e-9)


@given(PARTS)
def test_a_pushed_drafter_far_away_leaves_plain_decoding(parts: Parts) -> None:
    if parts.hit_rate < 0.9:
        assert pushed(parts, 1e6) == pytest.approx(plain(parts), rel=0.01)
