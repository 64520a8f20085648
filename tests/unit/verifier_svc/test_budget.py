"""How many nodes a session may draft, and when waiting for trees pays."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from verifier_svc.budget import Awaited, nodes_per_session, wait_seconds


@pytest.mark.parametrize(
    ("sessions", "draft_rows", "max_nodes", "expected"),
    [
        (0, 64, 31, 31),
        (1, 64, 31, 31),
        (1, 16, 31, 15),
        (2, 64, 31, 31),
        (4, 64, 31, 15),
        (32, 64, 31, 1),
        (64, 64, 31, 0),
        (200, 64, 31, 0),
        (3, 64, 0, 0),
    ],
)
def test_nodes_per_session(sessions: int, draft_rows: int, max_nodes: int, expected: int) -> None:
    assert nodes_per_session(sessions, draft_rows=draft_rows, max_nodes=max_nodes) == expected


@given(sessions=st.integers(1, 500), draft_rows=st.integers(1, 500), max_nodes=st.integers(0, 64))
def test_roots_and_nodes_fit_the_rows_wherever_the_roots_do(
    sessions: int, draft_rows: int, max_nodes: int
) -> None:
    nodes = nodes_per_session(sessions, draft_rows=draft_rows, max_nodes=max_nodes)
    assert 0 <= nodes <= max_nodes
    assert nodes == 0 or sessions * (1 + nodes) <= draft_rows
    more = nodes_per_session(sessions + 1, draft_rows=draft_rows, max_nodes=max_nodes)
    assert more <= nodes


def test_waiting_for_a_good_tree_that_is_near() -> None:
    near = Awaited(gain_tokens=2.0, expected_in=0.005)
    assert wait_seconds([near], ready_gain=0.0, sessions=1, step_seconds=0.04, limit=0.02) == 0.005


@pytest.mark.parametrize(
    "awaited",
    [
        [],
        [Awaited(gain_tokens=2.0, expected_in=0.03)],  # past the limit
        [Awaited(gain_tokens=0.1, expected_in=0.01)],  # brings less than it costs
    ],
)
def test_not_waiting(awaited: list[Awaited]) -> None:
    assert wait_seconds(awaited, ready_gain=0.0, sessions=1, step_seconds=0.04, limit=0.02) == 0.0


AWAITED = st.builds(Awaited, gain_tokens=st.floats(0, 8), expected_in=st.floats(-0.1, 0.1))


@given(
    awaited=st.lists(AWAITED, max_size=6),
    ready_gain=st.floats(0, 20),
    sessions=st.integers(1, 20),
    step_seconds=st.floats(0.001, 0.2),
    limit=st.floats(0, 0.1),
)
def test_waiting_never_lowers_the_rate_and_keeps_the_limit(
    awaited: list[Awaited], ready_gain: float, sessions: int, step_seconds: float, limit: float
) -> None:
    wait = wait_seconds(
        awaited, ready_gain=ready_gain, sessions=sessions, step_seconds=step_seconds, limit=limit
    )
    assert 0.0 <= wait <= limit
    gain = sum(tree.gain_tokens for tree in awaited if tree.expected_in <= wait)
    with_wait = (sessions + ready_gain + gain) / (step_seconds + wait)
    assert wait == 0.0 or with_wait > (sessions + ready_gain) / step_seconds
