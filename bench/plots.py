"""Plots as PNG files. Only this module needs matplotlib."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.system import BenchError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_SIZE = (7.0, 4.2)
_DPI = 150


def require() -> None:
    """Raise `BenchError` where nothing can be drawn; before a measurement, not after it."""
    if find_spec("matplotlib") is None:
        raise BenchError("a plot needs matplotlib, which is not installed: pip install 'paceline[bench]'")


def speed_up(document: Mapping[str, Any], path: Path) -> None:
    """Speculation on over off against concurrency or rate: the mean as a line, each round as a point."""
    rows = document["rows"]
    key, label = ("rate", "requests per second") if "rate" in rows[0] else ("concurrency", "sessions")

    def draw(axes: Axes) -> None:
        points = [row[key] for row in rows]
        axes.axhline(1.0, color="0.6", linewidth=1)
        axes.plot(points, [row["on_over_off"] for row in rows], marker="_", label="mean")
        rounds = [(row[key], ratio) for row in rows for ratio in row["on_over_off_by_round"]]
        at, ratios = zip(*rounds, strict=True)
        axes.scatter(at, ratios, s=14, color="black", alpha=0.6, label="one round")
        axes.set_ylabel("speculation on / off")
        axes.set_ylim(bottom=0)
        _log_axis(axes, points, label)

    _save(draw, document, path)


def step_cost(document: Mapping[str, Any], path: Path) -> None:
    """Time of a step against its rows: those of one session, and those of many."""
    series: dict[str, list[tuple[int, float]]] = {}
    for row in document["rows"]:
        each = row["rows_per_session"]
        point = (row["sessions"] * each, row["milliseconds"])
        if row["sessions"] == 1:
            series.setdefault("one session", []).append(point)
        if each <= document["most_rows_of_many"]:
            series.setdefault(f"{each} a session", []).append(point)

    def draw(axes: Axes) -> None:
        for name, points in series.items():
            axes.plot(*zip(*points, strict=True), marker=".", label=name)
        axes.set_ylabel("milliseconds of a step")
        axes.set_ylim(bottom=0)
        _log_axis(axes, sorted({rows for points in series.values() for rows, _ in points}), "rows of a step")

    _save(draw, document, path)


def trace(document: Mapping[str, Any], path: Path) -> None:
    """Each span of a request as a bar: on the left all of its time, on the right that of the first steps."""
    from matplotlib.figure import Figure

    from bench.trace import shown

    rows = shown(document["rows"])
    figure = Figure(figsize=(11.0, 0.9 + 0.17 * len(rows)), layout="constrained")
    whole, part = figure.subplots(1, 2, sharey=True)
    for axes in (whole, part):
        for at, row in enumerate(rows):
            _bar(axes, at, row)
        axes.grid(axis="x", alpha=0.3)
        axes.tick_params(axis="x", labelsize=7)
        axes.set_xlabel("milliseconds since the request came", fontsize=8)
    names = [" " * (3 * row["depth"]) + row["name"] for row in rows]
    whole.set_yticks(range(len(rows)), names, fontsize=7, ha="left")
    whole.tick_params(axis="y", length=0, pad=150)
    whole.set_ylim(len(rows) - 0.4, -0.6)
    whole.set_xlim(0, rows[0]["ms"] * 1.12)
    # The first token's step ends where decoding begins.
    first = next((row["began_ms"] for row in rows if row["name"] == "verifier.decode"), 0.0)
    ends = [row["began_ms"] + row["ms"] for row in rows if row["name"] == "verifier.step"]
    span = max(max(ends, default=0.0) - first, 1.0)
    part.set_xlim(first - 0.05 * span, first + 1.12 * span)
    figure.suptitle(_about(document), fontsize=8)
    figure.savefig(path, dpi=_DPI, format="png")


def _bar(axes: Axes, at: int, row: Mapping[str, Any]) -> None:
    """One span, in its service's colour, with its milliseconds behind it."""
    colour = {"gateway": "tab:blue", "verifier": "tab:orange", "drafter": "tab:green"}
    began, took = row["began_ms"], row["ms"]
    axes.barh(at, took, left=began, height=0.7, color=colour[row["name"].partition(".")[0]])
    told = f" {took:.1f}" if took < 10 else f" {took:.0f}"
    axes.text(began + took, at, told, va="center", fontsize=6, clip_on=True)


def _log_axis(axes: Axes, values: list[Any], label: str) -> None:
    axes.set_xscale("log", base=2)
    powers = [value for value in values if value == values[0] or len(values) < 10 or not value & (value - 1)]
    axes.set_xticks(powers, [f"{value:g}" for value in powers])
    axes.set_xlabel(label)


def _save(draw: Any, document: Mapping[str, Any], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=_SIZE, layout="constrained")
    axes = figure.add_subplot()
    draw(axes)
    axes.set_title(_about(document), fontsize=9)
    axes.legend()
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=_DPI, format="png")


def _about(document: Mapping[str, Any]) -> str:
    config, machine = document["config"], document["machine"]
    where = machine["gpu"] or f"{config['threads']} threads of {machine['cpu']}"
    return f"{config['model']}, {config['dtype']}; {where}"
