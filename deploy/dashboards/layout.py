"""A Grafana dashboard as rows of panels, and the JSON around them that Grafana wants."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

# Grafana's grid.
_COLUMNS = 24
_DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}


# Selectors of series: of verifiers, of gateways, of drafters.
VERIFIER = 'model_name=~"$model", pool=~"$pool"'
GATEWAY = 'model_name=~"$model"'
DRAFTER = 'pool=~"$pool"'


@dataclass(frozen=True, slots=True)
class Query:
    """An expression and how its series are named."""

    expr: str
    legend: str


@dataclass(frozen=True, slots=True)
class Panel:
    """One panel; `unit` is Grafana's id of a unit."""

    title: str
    description: str
    unit: str
    queries: tuple[Query, ...]
    kind: str = "timeseries"
    width: int = 8
    height: int = 8
    stacked: bool = False
    # Bounds of the axis; None lets Grafana choose.
    least: float | None = 0
    most: float | None = None

    def to_json(self, number: int, x: int, y: int) -> dict[str, Any]:
        """As Grafana reads it, at a place of its grid."""
        bounds = {"min": self.least, "max": self.most}
        defaults: dict[str, Any] = {"unit": self.unit}
        defaults |= {name: bound for name, bound in bounds.items() if bound is not None}
        options: dict[str, Any] = {}
        if self.kind == "timeseries":
            defaults["custom"] = {"fillOpacity": 10, "showPoints": "never"}
            if self.stacked:
                defaults["custom"]["stacking"] = {"mode": "normal"}
            options = {"legend": {"displayMode": "list", "placement": "bottom"}, "tooltip": {"mode": "multi"}}
        elif self.kind == "stat":
            options = {"reduceOptions": {"calcs": ["lastNotNull"]}, "colorMode": "none"}
        return {
            "id": number,
            "type": self.kind,
            "title": self.title,
            "description": self.description,
            "gridPos": {"x": x, "y": y, "w": self.width, "h": self.height},
            "datasource": _DATASOURCE,
            "targets": [
                {
                    "refId": chr(ord("A") + place),
                    "datasource": _DATASOURCE,
                    "expr": query.expr,
                    "legendFormat": query.legend,
                    # Points of histograms that lead to traces.
                    "exemplar": "_bucket" in query.expr,
                    "instant": self.kind in ("stat", "table", "bargauge"),
                }
                for place, query in enumerate(self.queries)
            ],
            "fieldConfig": {"defaults": defaults, "overrides": []},
            "options": options,
        }


@dataclass(frozen=True, slots=True)
class Row:
    """Panels under a heading."""

    title: str
    panels: tuple[Panel, ...]


@dataclass(frozen=True, slots=True)
class Dashboard:
    """One dashboard; its file has its name."""

    name: str
    title: str
    description: str
    rows: tuple[Row, ...]
    # Numbers that its readers type in, with what they begin as: name, label, value.
    numbers: tuple[tuple[str, str, str], ...] = field(default=())

    def text(self) -> str:
        """The content of its file."""
        return json.dumps(self._to_json(), indent=2) + "\n"

    def _to_json(self) -> dict[str, Any]:
        return {
            "uid": f"paceline-{self.name}",
            "title": self.title,
            "description": self.description,
            "tags": ["paceline"],
            "schemaVersion": 39,
            "version": 1,
            "editable": True,
            "graphTooltip": 1,
            "refresh": "30s",
            "time": {"from": "now-1h", "to": "now"},
            "links": [
                {
                    "type": "dashboards",
                    "title": "Paceline",
                    "tags": ["paceline"],
                    "asDropdown": True,
                    "includeVars": True,
                    "keepTime": True,
                }
            ],
            "templating": {"list": [*_variables(), *(_number(*each) for each in self.numbers)]},
            "panels": self._panels(),
        }

    def _panels(self) -> list[dict[str, Any]]:
        panels: list[dict[str, Any]] = []
        y = 0
        for row in self.rows:
            place = {"x": 0, "y": y, "w": _COLUMNS, "h": 1}
            panels.append(
                {
                    "id": len(panels) + 1,
                    "type": "row",
                    "title": row.title,
                    "collapsed": False,
                    "gridPos": place,
                    "panels": [],
                }
            )
            y, x, height = y + 1, 0, 0
            for panel in row.panels:
                if x + panel.width > _COLUMNS:
                    x, y, height = 0, y + height, 0
                panels.append(panel.to_json(len(panels) + 1, x, y))
                x, height = x + panel.width, max(height, panel.height)
            y += height
        return panels


def _variables() -> list[dict[str, Any]]:
    chosen = [
        ("model", "Model", "model_name", "paceline:build_info"),
        ("pool", "Pool", "pool", "paceline:build_info"),
    ]
    source = {"name": "datasource", "label": "Data source", "type": "datasource", "query": "prometheus"}
    return [source, *(_variable(*each) for each in chosen)]


def _variable(name: str, label: str, of: str, metric: str) -> dict[str, Any]:
    return {
        "name": name,
        "label": label,
        "type": "query",
        "datasource": _DATASOURCE,
        "query": {"query": f"label_values({metric}, {of})", "refId": name},
        "refresh": 2,
        "sort": 1,
        "multi": True,
        "includeAll": True,
        # Also series without the label: a gateway has no pool, a drafter no model.
        "allValue": ".*",
        "current": {"text": "All", "value": "$__all"},
    }


def _number(name: str, label: str, value: str) -> dict[str, Any]:
    return {
        "name": name,
        "label": label,
        "type": "textbox",
        "query": value,
        "current": {"text": value, "value": value},
    }


def rate(metric: str, selector: str) -> str:
    """How fast a counter grows, per second."""
    return f"rate({metric}{{{selector}}}[$__rate_interval])"


def quantiles(metric: str, selector: str, by: str = "") -> tuple[Query, ...]:
    """The median, the 95th and the 99th percentile of a histogram, for each value of the label `by`."""
    labels = f"le, {by}" if by else "le"
    legend = f" {{{{{by}}}}}" if by else ""
    buckets = f"sum by ({labels}) ({rate(metric + '_bucket', selector)})"
    return tuple(
        Query(f"histogram_quantile({share}, {buckets})", f"p{round(share * 100)}{legend}")
        for share in (0.5, 0.95, 0.99)
    )
