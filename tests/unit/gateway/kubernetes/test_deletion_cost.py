"""How dear a pod is to lose, by its sessions."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.kubernetes.deletion_cost import deletion_cost

SESSIONS = st.integers(0, 5000)


@pytest.mark.parametrize(
    ("sessions", "cost"), [(0, 0), (1, 1), (2, 2), (3, 2), (4, 4), (7, 4), (8, 8), (1000, 512)]
)
def test_what_is_written_first(sessions: int, cost: int) -> None:
    assert deletion_cost(sessions, None) == cost


@pytest.mark.parametrize(
    ("sessions", "written", "cost"),
    [(3, 4, 4), (7, 4, 4), (2, 4, 2), (8, 4, 8), (0, 1, 0), (1, 0, 1), (0, 0, 0), (1, 1, 1)],
)
def test_what_is_near_enough_stays(sessions: int, written: int, cost: int) -> None:
    assert deletion_cost(sessions, written) == cost


@given(SESSIONS, st.one_of(st.none(), SESSIONS.map(lambda n: deletion_cost(n, None))))
def test_an_idle_pod_is_the_cheapest_and_a_cost_is_within_a_factor_of_two(
    sessions: int, written: int | None
) -> None:
    cost = deletion_cost(sessions, written)
    assert (cost == 0) == (sessions == 0)
    assert sessions == 0 or sessions / 2 < cost < 2 * sessions


@given(st.lists(SESSIONS, min_size=1))
def test_it_is_not_written_again_while_it_holds(path: list[int]) -> None:
    written = None
    for sessions in path:
        written = deletion_cost(sessions, written)
        assert deletion_cost(sessions, written) == written
