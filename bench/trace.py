"""The trace of one streamed request through a whole fleet, as rows of a picture."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich import box
from rich.table import Table

from bench.arms import PacelineArm
from bench.collector import Collector, Recorded
from bench.results import Document
from bench.system import BenchError, Plan, Progress, system

# Asked before, so that the request that is shown finds a fleet at work.
_EARLIER = 2
# How long the last spans may take to arrive.
_ARRIVAL_SECONDS = 10.0
# Shown of each kind below one span; the others are counted.
_SHOWN_OF_KIND = 5


async def measure(plan: Plan, progress: Progress) -> Document:
    """Ask the last of the plan's questions, alone. Raises `BenchError` and what `system` raises."""
    with Collector.running() as collector:
        variables = {
            "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://{collector.address}",
            "OTEL_BSP_SCHEDULE_DELAY": "100",
        }
        async with system(plan, progress, variables=variables) as running:
            arm = PacelineArm(running.client, plan, speculation=True)
            for question in plan.questions[:_EARLIER]:
                await arm.answer(question.text, plan.max_tokens)
            progress("the request")
            asked = time.time_ns()
            sample = await arm.answer(plan.questions[-1].text, plan.max_tokens)
            request = await _request(collector, asked)
        # The fleet has ended, and has sent what it still had.
        spans = [span for span in collector.spans if span.trace_id == request.trace_id]
    return {
        "client_seconds": round(sample.seconds, 4),
        "tokens": sample.tokens,
        "num_spans": len(spans),
        "rows": list(_rows(spans, request)),
    }


async def _request(collector: Collector, asked: int) -> Recorded:
    """The span of the request that was made at `asked`, once it has come."""
    give_up = time.monotonic() + _ARRIVAL_SECONDS
    while time.monotonic() < give_up:
        for span in collector.spans:
            if span.name == "gateway.request" and span.began >= asked:
                return span
        await asyncio.sleep(0.1)
    raise BenchError("the request's trace has not come")


def _rows(spans: Sequence[Recorded], root: Recorded) -> Iterator[dict[str, Any]]:
    """The tree from `root` on, parents before children, children by their beginning."""
    below: dict[str, list[Recorded]] = {}
    for span in spans:
        below.setdefault(span.parent_id, []).append(span)

    def walk(span: Recorded, depth: int) -> Iterator[dict[str, Any]]:
        yield {
            "name": span.name,
            "depth": depth,
            "began_ms": round((span.began - root.began) / 1e6, 3),
            "ms": round(1e3 * span.seconds, 3),
            "attributes": dict(span.attributes),
        }
        for child in below.get(span.span_id, ()):
            yield from walk(child, depth + 1)

    yield from walk(root, 0)


def shown(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The rows for people: of many spans of one name below one span the first ones."""
    found: list[Mapping[str, Any]] = []
    # By depth, how often each name has come below the current parent.
    counts: list[Counter[str]] = []
    hidden: int | None = None
    for row in rows:
        depth = row["depth"]
        if hidden is not None and depth > hidden:
            continue
        hidden = None
        del counts[depth + 1 :]
        while len(counts) <= depth:
            counts.append(Counter())
        counts[depth][row["name"]] += 1
        if counts[depth][row["name"]] > _SHOWN_OF_KIND:
            hidden = depth
            continue
        found.append(row)
    return found


def table(document: Mapping[str, Any]) -> Table:
    """A row for each span that is shown."""
    made = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    made.add_column("span")
    for header in ("begins at ms", "takes ms"):
        made.add_column(header, justify="right")
    for row in shown(document["rows"]):
        name = "  " * row["depth"] + row["name"]
        made.add_row(name, f"{row['began_ms']:.1f}", f"{row['ms']:.1f}")
    return made
