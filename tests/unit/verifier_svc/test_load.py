"""A verifier's load, as whoever scales it reads it."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from paceline.sampling import SamplingParams
from paceline.session import SessionKey
from verifier_svc.cost import StepCost
from verifier_svc.load import Load, full_rows, waiting
from verifier_svc.sessions import Session


def test_steps_and_missing_trees_add_up() -> None:
    load = Load()
    load.stepped(0.5, 16)
    load.stepped(0.25, 8)
    for offered in (True, False, False):
        load.wanted(offered=offered)
    assert (load.busy_seconds, load.steps, load.rows) == (0.75, 2, 24)
    assert (load.wanted_trees, load.missing_trees) == (3, 2)
    assert load.uptime_seconds > 0


@pytest.mark.parametrize(
    ("seconds", "rows"),
    [
        (lambda edge: 1.0, 64),
        (lambda edge: float(edge), 2),
        (lambda edge: 1 + edge / 32, 32),
        # Every edge but the first is too wide.
        (lambda edge: 1.0 if edge == 1 else 3.0, 1),
    ],
    ids=["free", "each as long as the first", "as long again at 32", "none"],
)
def test_a_step_is_full_where_it_takes_twice_as_long(seconds: Callable[[int], float], rows: int) -> None:
    assert full_rows(StepCost({edge: seconds(edge) for edge in (1, 2, 4, 16, 32, 64)}, 0.0)) == rows


def test_sessions_without_kv_wait() -> None:
    held, empty = (
        Session(
            key=SessionKey(name, 1),
            prompt_length=1,
            token_ids=[1],
            sampling=SamplingParams(max_tokens=2),
            length_limit=3,
        )
        for name in "ab"
    )
    held.blocks.append(0)
    assert waiting([held, empty]) == 1
