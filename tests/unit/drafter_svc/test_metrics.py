"""The drafter's metrics: all of them documented, and in no other process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from prometheus_client.metrics import MetricWrapperBase

from drafter_svc import metrics

OPERATIONS = Path(__file__).parents[3] / "docs" / "operations.md"
OWN = {
    family.name
    for metric in vars(metrics).values()
    if isinstance(metric, MetricWrapperBase)
    for family in metric.collect()
}


def test_each_name_is_documented() -> None:
    documented = OPERATIONS.read_text()
    assert len(OWN) == 4
    assert [name for name in OWN if f"`{name}`" not in documented] == []


def test_another_process_has_none_of_them() -> None:
    program = (
        "from paceline.service import telemetry\n"
        "from prometheus_client import REGISTRY\n"
        "print(*[family.name for family in REGISTRY.collect()])"
    )
    shown = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    elsewhere = set(shown.stdout.split())
    assert "paceline:tasks" in elsewhere
    assert not OWN & elsewhere
