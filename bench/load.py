"""Throughput and latency under load, speculation on against off, the arms in turns."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Any

from rich import box
from rich.table import Table

from bench.arms import PLAIN, SPECULATIVE, arrivals
from bench.results import Document, quantile
from bench.system import Plan, Progress, system
from bench.windows import Window, closed, poisson

CLOSED, POISSON = ARRIVALS = ("closed", "poisson")
# The quantity whose ratio `on_over_off` is.
NOTES = {
    CLOSED: "on_over_off: of the tokens per second of all sessions, as many as `concurrency` at any time.",
    POISSON: "on_over_off: of one session's tokens per second after its first, at `rate` requests a second.",
}


async def measure(
    plan: Plan,
    progress: Progress,
    *,
    arrival: str,
    window_s: float,
    rounds: int,
    concurrencies: Sequence[int] = (),
    rates: Sequence[float] = (),
) -> Document:
    """Rates and latencies of both arms at each concurrency, or with Poisson arrivals at each rate.

    Raises what `system` raises.
    """
    key, points = ("rate", rates) if arrival == POISSON else ("concurrency", concurrencies)
    rows: list[dict[str, Any]] = []
    done, of = 0, len(points) * rounds * 2
    async with system(plan, progress) as running:

        async def window(arm: str, point: float, number: int) -> Window:
            questions = itertools.cycle(plan.questions[number % len(plan.questions) :])

            def ask() -> AsyncGenerator[tuple[float, int]]:
                text = next(questions).text
                return arrivals(running.client, plan.generation(text, speculation=arm == SPECULATIVE))

            if arrival == POISSON:
                return await poisson(ask, point, window_s, seed=number)
            return await closed(ask, int(point), window_s)

        for point in points:
            windows: dict[str, list[Window]] = {PLAIN: [], SPECULATIVE: []}
            for number in range(rounds):
                # Both arms read the same questions; who begins changes from round to round.
                for arm in (PLAIN, SPECULATIVE) if number % 2 == 0 else (SPECULATIVE, PLAIN):
                    progress(f"{key} {point:g}: {arm}", done, of)
                    windows[arm].append(await window(arm, point, number))
                    done += 1
            rows.append({key: point, **_row(windows, arrival)})
    progress("done", of)
    return {
        "speculation_on_over_off": {f"{row[key]:g}": row["on_over_off"] for row in rows},
        "least_on_over_off": min(row["on_over_off"] for row in rows),
        "rows": rows,
        "note": NOTES[arrival],
    }


def table(document: Mapping[str, Any]) -> Table:
    """Two rows, one an arm, for each concurrency or rate."""
    made = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    key = "rate" if "rate" in document["rows"][0] else "concurrency"
    for header in (
        "requests/s" if key == "rate" else "sessions",
        "speculation",
        "tok/s",
        "first token s\nmedian",
        "\np99",
        "ms/token\nmedian",
        "\np99",
        "on/off",
    ):
        made.add_column(header, justify="right")
    for row in document["rows"]:
        for arm, name, over in ((PLAIN, "off", ""), (SPECULATIVE, "on", f"{row['on_over_off']:.2f}x")):
            figures = row[arm]
            made.add_row(
                f"{row[key]:g}" if arm == PLAIN else "",
                name,
                f"{figures['tokens_per_second']:.1f}",
                *(_shown(figures[f"first_token_seconds_{share}"], 1) for share in ("median", "p99")),
                *(_shown(figures[f"seconds_per_token_{share}"], 1e3) for share in ("median", "p99")),
                over,
            )
    return made


def _row(windows: Mapping[str, Sequence[Window]], arrival: str) -> dict[str, Any]:
    def ratio(on: Window, off: Window) -> float:
        one, other = (on.session_rate, off.session_rate) if arrival == POISSON else (on.rate, off.rate)
        return one / other if other else 0.0

    ratios = [ratio(on, off) for on, off in zip(windows[SPECULATIVE], windows[PLAIN], strict=True)]
    return {
        "on_over_off": round(statistics.mean(ratios), 3),
        # The run's noise: the ratio of each round.
        "on_over_off_by_round": [round(ratio, 3) for ratio in ratios],
        **{arm: _figures(seen, arrival) for arm, seen in windows.items()},
    }


def _figures(windows: Sequence[Window], arrival: str) -> dict[str, Any]:
    gaps = [gap for window in windows for gap in window.gaps]
    firsts = [first for window in windows for first in window.firsts]
    figures: dict[str, Any] = {
        "tokens_per_second": round(statistics.mean(window.rate for window in windows), 1),
        "seconds_per_token_median": quantile(gaps, 0.5),
        "seconds_per_token_p99": quantile(gaps, 0.99),
        "first_token_seconds_median": quantile(firsts, 0.5),
        "first_token_seconds_p99": quantile(firsts, 0.99),
    }
    if arrival == POISSON:
        figures["requests"] = sum(window.requests for window in windows)
        figures["unfinished"] = sum(window.unfinished for window in windows)
    return figures


def _shown(value: float | None, scale: float) -> str:
    if value is None:
        return "-"
    return f"{value * scale:.2f}" if scale == 1 else f"{value * scale:.0f}"
