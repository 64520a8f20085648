"""Labels of the verifier's metrics."""

from __future__ import annotations

import pytest

from verifier_svc import metrics


@pytest.mark.parametrize(("number", "label"), [(0, "1"), (1, "1"), (2, "2"), (3, "4"), (65, "128")])
def test_rows_of_a_step_are_labelled_by_powers_of_two(number: int, label: str) -> None:
    assert metrics.rows_label(number) == label
