"""Dashboards as Grafana reads them: complete, tidy, and only of metrics that exist."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from deploy.dashboards.__main__ import DASHBOARDS
from tests.monitoring.dashboards import FILES, load, queries
from tests.monitoring.test_rules import METRIC, SAMPLES, promtool

each_file = pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
# Grafana's ids of the units that are used here.
UNITS = {"short", "s", "bytes", "percentunit", "reqps", "currencyUSD"}
VARIABLES = ["datasource", "model", "pool"]


def shown(path: Path) -> list[dict[str, Any]]:
    """Panels that show something."""
    return [panel for panel in load(path)["panels"] if panel["type"] != "row"]


def cells(panel: dict[str, Any]) -> set[tuple[int, int]]:
    place = panel["gridPos"]
    return {
        (x, y)
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    }


def test_the_files_are_what_the_generator_writes() -> None:
    """`make dashboards` writes them."""
    assert {path.stem: path.read_text() for path in FILES} == {each.name: each.text() for each in DASHBOARDS}


def test_no_two_dashboards_have_one_id() -> None:
    loaded = [load(path) for path in FILES]
    assert len(loaded) == 4
    assert len({each["uid"] for each in loaded}) == len({each["title"] for each in loaded}) == 4
    assert all(re.fullmatch(r"[a-z-]{1,40}", each["uid"]) for each in loaded)


@each_file
def test_panels_have_ids_and_places_of_their_own(path: Path) -> None:
    panels = load(path)["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        wanted = cells(panel)
        assert not wanted & taken, panel["title"]
        assert all(0 <= x < 24 for x, _ in wanted), panel["title"]
        taken |= wanted


@each_file
def test_each_panel_says_what_it_shows_and_in_which_unit(path: Path) -> None:
    titles = [panel["title"] for panel in shown(path)]
    assert len(titles) == len(set(titles))
    for panel in shown(path):
        assert panel["description"].endswith("."), panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"] in UNITS, panel["title"]
        assert panel["targets"], panel["title"]
        assert all(target["legendFormat"] for target in panel["targets"]), panel["title"]
        assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])


@each_file
def test_every_query_goes_to_the_chosen_source(path: Path) -> None:
    dashboard = load(path)
    variables = {each["name"]: each["type"] for each in dashboard["templating"]["list"]}
    assert list(variables)[:3] == VARIABLES
    assert variables["datasource"] == "datasource"
    for panel in shown(path):
        asked = [panel, *panel["targets"]]
        assert {each["datasource"]["uid"] for each in asked} == {"${datasource}"}, panel["title"]
    used = set(re.findall(r"\$(\w+)", " ".join(t["expr"] for p in shown(path) for t in p["targets"])))
    assert used - {"__rate_interval"} == set(variables) - {"datasource"}


@each_file
def test_queries_are_of_metrics_that_processes_export(path: Path) -> None:
    for title, query in queries(path):
        read = set(METRIC.findall(query))
        assert read, title
        assert read <= SAMPLES, title


@each_file
def test_prometheus_can_read_every_query(path: Path, tmp_path: Path) -> None:
    rules = [{"record": f"query:{number}", "expr": query} for number, (_, query) in enumerate(queries(path))]
    written = tmp_path / "queries.yaml"
    written.write_text(yaml.safe_dump({"groups": [{"name": "queries", "rules": rules}]}))
    promtool("check", "rules", str(written))
