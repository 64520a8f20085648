"""Before the first session: warm the kernels up, and time steps of every width."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence

from paceline.engine.blocks import BlockTask
from paceline.engine.kv import KVPool
from paceline.engine.model import BLOCK_SIZE, Decoder
from paceline.engine.rows import Segment
from verifier_svc.cost import EDGES, StepCost

# A step of this many blocks more shows what a block costs.
_MORE_BLOCKS = 15
# How often a step is timed, and one that takes so many seconds: what disturbs that is little of it.
_REPEATS, _LONG_REPEATS = 3, 2
_LONG_SECONDS = 0.05


def measure(decoder: Decoder, pool: KVPool, *, blocks: int, draft_rows: int, max_context: int) -> StepCost:
    """Time forwards on empty KV; takes a few seconds. Uses blocks that nobody may hold yet.

    No row stands at a position of `max_context` or more: models with learned positions have no others.
    """
    run = min(BLOCK_SIZE, max_context)
    usable = min(blocks, 1 + _MORE_BLOCKS, max(1, max_context // BLOCK_SIZE))
    pool.prepare([BlockTask(block) for block in range(usable)])

    def fastest(steps: Mapping[str, Sequence[Segment]]) -> dict[str, float]:
        """Seconds of each: the fastest of some, in turns. What disturbs a step only ever makes it slower."""
        times: dict[str, float] = {}
        for repeat in range(_REPEATS):
            for name, segments in steps.items():
                if repeat >= _LONG_REPEATS and times[name] >= _LONG_SECONDS:
                    continue
                started = time.perf_counter()
                # Reading a logit waits for the device.
                decoder.forward(decoder.batch(segments), pool)[0, 0].item()
                times[name] = min(times.get(name, math.inf), time.perf_counter() - started)
        return times

    edges = [edge for edge in EDGES if edge <= max(1, draft_rows)]
    steps: dict[str, Sequence[Segment]] = {f"{edge}": _drafted(edge) for edge in edges}
    # Of a prompt, which wants the logits of its last row only.
    steps["prompt"] = [Segment(run=[0] * run, start=0, blocks=(0,))]
    drafted = f"{run}"
    steps.setdefault(drafted, _drafted(run))
    if usable > 1:
        table = tuple(range(usable))
        steps["long"] = [Segment(run=[0], start=usable * BLOCK_SIZE - 1, blocks=table)]
        # Blocks of many sessions lie apart, and each is read for few rows.
        steps["apart"] = [Segment(run=[0], start=BLOCK_SIZE - 1, blocks=(block,)) for block in table]
        steps["together"] = _drafted(usable)
        steps["long prompt"] = [Segment(run=[0] * BLOCK_SIZE, start=(usable - 1) * BLOCK_SIZE, blocks=table)]
    fastest({"first": _drafted(8)})
    times = fastest(steps)
    # Fewer rows never take longer: where they did, something disturbed them.
    rows = {edge: min(times[f"{wider}"] for wider in edges if wider >= edge) for edge in edges}
    per_logits = (times[drafted] - times["prompt"]) / max(1, run - 1)
    if usable < 2:
        return StepCost(rows, 0.0, 0.0, per_logits)
    per_block = max(times["long"] - times["1"], times["apart"] - times["together"]) / (usable - 1)
    per_row_and_block = (times["long prompt"] - times["prompt"]) / (BLOCK_SIZE * (usable - 1))
    return StepCost(rows, per_block, per_row_and_block, per_logits)


def _drafted(rows: int) -> list[Segment]:
    """So many rows in trees that fit one block; they overwrite one another, which does not matter."""
    sizes = [min(BLOCK_SIZE, rows - start) for start in range(0, rows, BLOCK_SIZE)]
    return [
        Segment(run=[0], start=0, blocks=(0,), tree_tokens=[0] * (size - 1), tree_parents=[-1] * (size - 1))
        for size in sizes
    ]
