"""Writes the chart's Grafana dashboards: `make dashboards`."""

from __future__ import annotations

from pathlib import Path

from deploy.dashboards.cost import COST
from deploy.dashboards.fleet import FLEET
from deploy.dashboards.sessions import SESSIONS
from deploy.dashboards.speculation import SPECULATION

FOLDER = Path(__file__).parents[1] / "chart" / "dashboards"
DASHBOARDS = (FLEET, SPECULATION, SESSIONS, COST)


def main() -> None:
    """Write all of them."""
    for dashboard in DASHBOARDS:
        (FOLDER / f"{dashboard.name}.json").write_text(dashboard.text())


if __name__ == "__main__":
    main()
