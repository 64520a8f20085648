"""What the closed forms are given of answers that were measured."""

from __future__ import annotations

import pytest

from bench.arms import Sample
from bench.drafters.forms import Measured, compared
from paceline.session import Receipt


def test_a_steps_time_is_what_bare_steps_and_waits_leave_of_it() -> None:
    # Behind the first token: two bare steps of 0.1 s, and four of 0.2 s with trees, of three tokens each. For
    # each of these the answer waited 0.05 s.
    receipt = Receipt(steps=7, committed_tokens=15, drafted_steps=4)
    sample = Sample("", tuple(range(15)), first_s=1.0, seconds=2.2, receipt=receipt)
    measured = Measured.of(
        plain_seconds=0.1, samples=[sample], waited=0.2, replies={"text": 0.01, "head": 0.04}, hit_rate=0.5
    )
    assert measured.acceptance_length == pytest.approx(3.0)
    assert measured.tree_step == pytest.approx(0.2)
    # A step has its whole tree when the slowest source has answered.
    assert measured.draft == 0.04

    figures = {"round_trip_ms": 60.0, "decode_tokens_per_second": 5.0}
    told = compared(measured, figures, ahead=False)
    assert told["formula"]["plain"] == 10.0
    assert told["formula"]["synchronous"] == 10.0
    assert told["over_formula"] == 0.5
    ahead = compared(measured, figures, ahead=True)
    assert ahead["over_formula"] == pytest.approx(5.0 / ahead["formula"]["pushed"], abs=0.01)
