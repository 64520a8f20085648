"""docs/metrics.md lists what each service's process registers, and nothing else."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.metric_table import EVERY_SERVICE, documented

# All that `python -m SERVICE` imports; of each family the name, the type and the labels.
PROGRAM = """
import importlib, json, sys
from prometheus_client import REGISTRY
importlib.import_module(sys.argv[1] + ".service")
families = {
    family.name: [family.type, sorted(getattr(collector, "_labelnames", ()))]
    for collector in list(REGISTRY._collector_to_names)
    for family in getattr(collector, "describe", list)()
    if family.name.startswith("paceline:")
}
print(json.dumps(families))
"""
SERVICES = {"Gateway": "gateway", "Verifier": "verifier_svc", "Drafter": "drafter_svc"}


@pytest.fixture(scope="module")
def registered() -> dict[str, dict[str, tuple[str, tuple[str, ...]]]]:
    """By section of the page, each family's type and labels."""
    found = {}
    for section, package in SERVICES.items():
        command = [sys.executable, "-c", PROGRAM, package]
        shown = subprocess.run(command, capture_output=True, text=True, check=True)
        families = json.loads(shown.stdout.splitlines()[-1])
        found[section] = {name: (kind, tuple(labels)) for name, (kind, labels) in families.items()}
    return found


@pytest.mark.parametrize("section", SERVICES)
def test_the_page_has_what_the_process_registers(
    section: str, registered: dict[str, dict[str, tuple[str, tuple[str, ...]]]]
) -> None:
    tables = documented()
    rows = tables[EVERY_SERVICE] | tables[section]
    assert {name: (row.kind, row.labels) for name, row in rows.items()} == registered[section]


def test_no_two_services_have_the_same_metric() -> None:
    tables = documented()
    names = [name for table in tables.values() for name in table]
    assert len(names) == len(set(names))


def test_a_unit_is_part_of_the_name_where_prometheus_wants_it() -> None:
    rows = [row for table in documented().values() for row in table.values()]
    timed = {row.name for row in rows if row.unit in ("seconds", "Unix time")}
    assert timed == {row.name for row in rows if row.name.endswith("_seconds")}


def test_what_vllm_has_is_named_as_vllm_names_it() -> None:
    rows = [row for table in documented().values() for row in table.values()]
    named = [row for row in rows if row.vllm]
    assert len(named) > 15
    assert [row.name for row in named if row.name != f"paceline:{row.vllm}"] == []
