"""The chart's dashboards, and their queries as Grafana would send them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parents[2] / "deploy" / "chart" / "dashboards"
FILES = sorted(FOLDER.glob("*.json"))


def load(path: Path) -> dict[str, Any]:
    """A dashboard."""
    dashboard: dict[str, Any] = json.loads(path.read_text())
    return dashboard


def queries(path: Path, *, interval: str = "1m") -> Iterator[tuple[str, str]]:
    """By the titles of dashboard and panel, every query with all models and pools chosen.

    `interval`: what Grafana puts for `$__rate_interval`; fixed windows are as long.
    """
    dashboard = load(path)
    values = {"__rate_interval": interval}
    for variable in dashboard["templating"]["list"]:
        if variable["type"] == "query":
            values[variable["name"]] = variable["allValue"]
        elif variable["type"] == "textbox":
            values[variable["name"]] = variable["query"]
    for panel in dashboard["panels"]:
        for target in panel.get("targets", ()):
            expression = re.sub(r"\$(\w+)", lambda found: values[found[1]], target["expr"])
            yield f"{dashboard['title']} / {panel['title']}", expression
