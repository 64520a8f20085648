"""`paceline bench drafters`: every row in every arrangement, one after another, and their table."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table

from bench.drafters import serve
from bench.drafters.rows import ROWS, Arrangement, Row
from bench.results import Document, load_average
from bench.system import BenchError, Plan, Progress

NOTE = (
    "Each question once with drafts and once without, in turns, one session at a time, in a fleet of the "
    "row's own. Verifier ms/token: seconds of the engine in steps over committed tokens, prompts included, "
    "waits excluded; plain's in brackets. Drafter ms/token: its process's processor time. In `split` the "
    "verifier has half of the cores and everything else the other half, with drafts and without."
)
_HEADERS = (
    "L",
    "nodes",
    "verifier\nms/token",
    "drafter\nms/token",
    "one machine\ntok/s",
    "x plain",
    "split\ntok/s",
    "x plain",
    "identical",
)


async def measure(
    plan: Plan,
    progress: Progress,
    *,
    names: Sequence[str],
    sampled_prompts: int,
    temperature: float,
    draft_model: str | None,
) -> Document:
    """All rows. Raises what `system` raises, and `BenchError` for a row that has no such name or model."""
    rows = _chosen(names, draft_model)
    temperatures = {0.0: len(plan.questions)}
    if sampled_prompts:
        temperatures[temperature] = min(sampled_prompts, len(plan.questions))
    made: list[dict[str, Any]] = []
    for row in rows:
        figures: dict[str, Any] = {"row": row.name, "method": row.method, "load_before": load_average()}
        for arrangement in Arrangement:
            figures[arrangement] = await serve.measure(
                plan, row, arrangement, progress, temperatures=temperatures, draft_model=draft_model
            )
        made.append({**figures, "load_after": load_average()})
    return {"rows": made, "date": time.strftime("%Y-%m-%d"), "commit": _commit(), "note": NOTE}


def table(document: Mapping[str, Any]) -> Table:
    """A line for each row and temperature."""
    made = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), caption=document["note"], caption_justify="left")
    made.add_column("drafter", no_wrap=True)
    made.add_column("T", justify="right")
    for header in _HEADERS:
        made.add_column(header, justify="right")
    for row in document["rows"]:
        for temperature, one in row[Arrangement.ONE_MACHINE].items():
            made.add_row(row["row"], temperature, *_cells(one, row[Arrangement.SPLIT][temperature]))
    return made


def _cells(one: Mapping[str, Any], split: Mapping[str, Any]) -> list[str]:
    return [
        f"{one['acceptance_length']:.2f}",
        f"{one['nodes_per_step']:.1f}",
        f"{one['verifier_ms_per_token']:.1f} ({one['plain_verifier_ms_per_token']:.1f})",
        f"{one['drafter_ms_per_token']:.2f}",
        f"{one['tokens_per_second']:.1f}",
        f"{one['over_plain']:.2f}",
        f"{split['tokens_per_second']:.1f}",
        f"{split['over_plain']:.2f}",
        f"{one['identical'] + split['identical']}/{one['prompts'] + split['prompts']}",
    ]


def _chosen(names: Sequence[str], draft_model: str | None) -> list[Row]:
    known = {row.name: row for row in ROWS}
    if unknown := [name for name in names if name not in known]:
        raise BenchError(f"no row {unknown[0]!r}; there are {', '.join(known)}")
    rows = [known[name] for name in names] if names else list(ROWS)
    if draft_model is None:
        if "draft model" in names:
            raise BenchError(
                "the row of a draft model needs --draft-model (`paceline train draft` makes one)"
            )
        rows = [row for row in rows if row.name != "draft model"]
    return rows


def _commit() -> str:
    """Of the source tree; empty where this is none."""
    asked = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    )
    return asked.stdout.strip()
