"""Before the first session: warm the kernels up, and time steps of every width."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence

from paceline.engine.blocks import BlockTask
from paceline.engine.engine import Engine
from paceline.engine.rows import Segment
from verifier_svc.cost import EDGES, StepCost

# A step of this many blocks more shows what a block costs.
_MORE_BLOCKS = 15
# Runs of each step; fewer of a step that takes `_LONG_SECONDS`, of which a disturbance is a small part.
_REPEATS, _LONG_REPEATS = 3, 2
_LONG_SECONDS = 0.05


def measure(engine: Engine, *, draft_rows: int) -> StepCost:
    """Time forwards on empty KV; takes a few seconds. Uses blocks that nobody may hold yet.

    No row stands past the model's context: models with learned positions have no others.
    """
    block_size, max_context = engine.block_size, engine.shape.max_context
    run = min(block_size, max_context)
    usable = min(engine.blocks, 1 + _MORE_BLOCKS, max(1, max_context // block_size))

    def fastest(steps: Mapping[str, Sequence[Segment]]) -> dict[str, float]:
        """Seconds of each step: the fastest of some runs, in turns. Disturbances only make a step slower."""
        times: dict[str, float] = {}
        for repeat in range(_REPEATS):
            for name, segments in steps.items():
                if repeat >= _LONG_REPEATS and times[name] >= _LONG_SECONDS:
                    continue
                started = time.perf_counter()
                # Reading a logit waits for the device.
                engine.forward(segments)[0, 0].item()
                times[name] = min(times.get(name, math.inf), time.perf_counter() - started)
        return times

    edges = [edge for edge in EDGES if edge <= max(1, draft_rows)]
    steps: dict[str, Sequence[Segment]] = {f"{edge}": _drafted(edge, block_size) for edge in edges}
    # Of a prompt, which wants the logits of its last row only.
    steps["prompt"] = [Segment(run=[0] * run, start=0, blocks=(0,))]
    drafted = f"{run}"
    steps.setdefault(drafted, _drafted(run, block_size))
    if usable > 1:
        table = tuple(range(usable))
        steps["long"] = [Segment(run=[0], start=usable * block_size - 1, blocks=table)]
        # Blocks of many sessions lie apart, and each is read for few rows.
        steps["apart"] = [Segment(run=[0], start=block_size - 1, blocks=(block,)) for block in table]
        steps["together"] = _drafted(usable, block_size)
        steps["long prompt"] = [Segment(run=[0] * block_size, start=(usable - 1) * block_size, blocks=table)]
    first = _drafted(8, block_size)
    engine.forward(first, [BlockTask(block) for block in range(usable)])
    fastest({"first": first})
    times = fastest(steps)
    # Fewer rows never take longer: where they did, something disturbed them.
    rows = {edge: min(times[f"{wider}"] for wider in edges if wider >= edge) for edge in edges}
    per_logits = (times[drafted] - times["prompt"]) / max(1, run - 1)
    if usable < 2:
        return StepCost(rows, 0.0, 0.0, per_logits)
    per_block = max(times["long"] - times["1"], times["apart"] - times["together"]) / (usable - 1)
    per_row_and_block = (times["long prompt"] - times["prompt"]) / (block_size * (usable - 1))
    return StepCost(rows, per_block, per_row_and_block, per_logits)


def _drafted(rows: int, block_size: int) -> list[Segment]:
    """`rows` rows in trees that fit one block; they overwrite one another, which does not matter."""
    sizes = [min(block_size, rows - start) for start in range(0, rows, block_size)]
    return [
        Segment(run=[0], start=0, blocks=(0,), tree_tokens=[0] * (size - 1), tree_parents=[-1] * (size - 1))
        for size in sizes
    ]
