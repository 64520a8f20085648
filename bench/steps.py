"""Time of one forward of the engine by its rows, of one session and of many; no service runs."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.table import Table

from bench.results import Document
from bench.system import Plan, Progress

ROWS = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256)
SESSIONS = (1, 2, 4, 8, 16, 32)
ROWS_OF_MANY = (1, 2, 4, 8)
CONTEXT_TOKENS = 256


def shapes() -> list[tuple[int, int]]:
    """(sessions, rows of each) of every step that is timed."""
    one = [(1, rows) for rows in ROWS]
    return one + [(sessions, rows) for rows in ROWS_OF_MANY for sessions in SESSIONS if sessions > 1]


async def measure(plan: Plan, progress: Progress, *, rounds: int, keep_states: str) -> Document:
    """Each shape once a round, the first round not counted. Raises `ModelError` of the engine.

    A session's rows are a draft tree whose root stands behind `CONTEXT_TOKENS`. Where `keep_states` names
    layers, each shape is timed by an engine that keeps theirs too, the two taking turns.
    """
    import torch

    from paceline.engine.blocks import BlockTask
    from paceline.engine.engine import Engine
    from paceline.engine.model import Decoder, choose_device
    from paceline.engine.rows import Segment

    def segment(session: int, rows: int) -> Segment:
        nodes = rows - 1
        return Segment(
            run=[0],
            start=CONTEXT_TOKENS,
            blocks=range(session * blocks, (session + 1) * blocks),
            tree_tokens=[0] * nodes,
            tree_parents=[(node + 1) // 2 - 1 for node in range(nodes)],
        )

    progress("loading the model", 0, rounds + 1)
    torch.set_num_threads(plan.threads)
    decoder = Decoder.load(plan.model.folder, device=choose_device("auto"), dtype=getattr(torch, plan.dtype))
    asked = shapes()
    blocks = (CONTEXT_TOKENS + max(ROWS)) // decoder.block_size + 1
    kept: list[tuple[int, ...]] = [(), decoder.layers.named(keep_states)] if keep_states else [()]
    engines = [Engine(decoder, max(SESSIONS) * blocks, layers) for layers in kept]
    for engine in engines:
        engine.forward([segment(0, 1)], [BlockTask(block) for block in range(engine.blocks)])
    times: list[dict[tuple[int, int], list[float]]] = [{shape: [] for shape in asked} for _ in engines]
    for number in range(rounds + 1):
        progress(f"round {number}" if number else "warming up", number)
        for sessions, rows in asked:
            segments = [segment(session, rows) for session in range(sessions)]
            turns = list(zip(engines, times, strict=True))
            # Neither always runs on what the other left in the caches.
            for engine, seen in turns if number % 2 else reversed(turns):
                started = time.perf_counter()
                # Reading a logit waits for the device.
                engine.forward(segments)[0, 0].item()
                if number:
                    seen[sessions, rows].append(time.perf_counter() - started)
    progress("done", rounds + 1)
    return {
        "context_tokens": CONTEXT_TOKENS,
        "most_rows_of_many": max(ROWS_OF_MANY),
        "kept_layers": list(kept[-1]),
        "rows": [
            {
                "sessions": sessions,
                "rows_per_session": rows,
                "milliseconds": round(statistics.median(times[0][sessions, rows]) * 1e3, 2),
                "fastest_milliseconds": round(min(times[0][sessions, rows]) * 1e3, 2),
                **_longer([seen[sessions, rows] for seen in times]),
            }
            for sessions, rows in asked
        ],
    }


def _longer(times: Sequence[Sequence[float]]) -> dict[str, float]:
    """How many times as long a step takes that keeps states, by each round's pair; empty without them."""
    if len(times) < 2:
        return {}
    plain, keeping = times
    ratios = [after / before for before, after in zip(plain, keeping, strict=True)]
    return {"with_states": round(statistics.median(ratios), 4)}


def table(document: Mapping[str, Any]) -> Table:
    """One row per shape."""
    made = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    kept = ("with states",) if document["kept_layers"] else ()
    for header in ("sessions", "rows each", "ms", "fastest", "ms/row", *kept):
        made.add_column(header, justify="right")
    for row in document["rows"]:
        rows = row["sessions"] * row["rows_per_session"]
        made.add_row(
            str(row["sessions"]),
            str(row["rows_per_session"]),
            f"{row['milliseconds']:.1f}",
            f"{row['fastest_milliseconds']:.1f}",
            f"{row['milliseconds'] / rows:.2f}",
            *(f"{row['with_states']:.3f}" for _ in kept),
        )
    return made
