"""The verifier's metrics: its own only, and all of them documented."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from prometheus_client import REGISTRY
from prometheus_client.metrics import MetricWrapperBase

from verifier_svc import metrics

OPERATIONS = Path(__file__).parents[3] / "docs" / "operations.md"
OWN = {
    family.name
    for metric in vars(metrics).values()
    if isinstance(metric, MetricWrapperBase)
    for family in metric.collect()
}


def test_each_name_is_documented() -> None:
    documented = OPERATIONS.read_text()
    # A table row abbreviates names that begin alike.
    documented = re.sub(r"`\.\.\.(\w+)`", r"`paceline:spec_decode\1`", documented)
    assert len(OWN) > 20
    assert [name for name in OWN if not re.search(rf"`{name}[`{{]", documented)] == []


def test_another_process_has_none_of_them() -> None:
    """What every service imports registers nothing of the verifier's."""
    program = (
        "from paceline.service import telemetry\n"
        "from prometheus_client import REGISTRY\n"
        "print(*[family.name for family in REGISTRY.collect()])"
    )
    shown = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    elsewhere = set(shown.stdout.split())
    assert "paceline:tasks" in elsewhere
    assert {family.name for family in REGISTRY.collect()} >= OWN
    assert not OWN & elsewhere


@pytest.mark.parametrize(("number", "label"), [(0, "1"), (1, "1"), (2, "2"), (3, "4"), (65, "128")])
def test_labels_of_a_step_are_powers_of_two(number: int, label: str) -> None:
    assert metrics.step_labels(rows=number, context=1) == (label, "1")
    assert metrics.step_labels(rows=1, context=number) == ("1", label)
