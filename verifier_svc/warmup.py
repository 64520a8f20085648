"""Before the first session: warm the kernels up, and time steps of every width."""

from __future__ import annotations

import time
from collections.abc import Sequence

from paceline.engine.blocks import BlockTask
from paceline.engine.kv import KVPool
from paceline.engine.model import BLOCK_SIZE, Decoder
from paceline.engine.rows import Segment
from verifier_svc.cost import EDGES, StepCost

# A step of this many blocks more shows what a block costs.
_MORE_BLOCKS = 15
_REPEATS = 3


def measure(decoder: Decoder, pool: KVPool, *, blocks: int, draft_rows: int) -> StepCost:
    """Time forwards on empty KV; takes a second or so. Uses blocks that nobody may hold yet."""
    usable = min(blocks, 1 + _MORE_BLOCKS)
    pool.prepare([BlockTask(block) for block in range(usable)])

    def seconds(segments: Sequence[Segment]) -> float:
        """The fastest of some forwards: what disturbs one only ever makes it slower."""
        times: list[float] = []
        for _ in range(_REPEATS):
            started = time.perf_counter()
            # Reading a logit waits for the device.
            decoder.forward(decoder.batch(segments), pool)[0, 0].item()
            times.append(time.perf_counter() - started)
        return min(times)

    def rows_of(count: int) -> list[Segment]:
        """`count` rows in runs that fit one block; they overwrite one another, which does not matter."""
        runs = [min(BLOCK_SIZE, count - start) for start in range(0, count, BLOCK_SIZE)]
        return [Segment(run=[0] * run, start=0, blocks=(0,)) for run in runs]

    seconds(rows_of(8))
    rows = {edge: seconds(rows_of(edge)) for edge in EDGES if edge <= max(1, draft_rows)}
    if usable < 2:
        return StepCost(rows, 0.0)
    long = Segment(run=[0], start=usable * BLOCK_SIZE - 1, blocks=tuple(range(usable)))
    per_block = (seconds([long]) - rows[1]) / (usable - 1)
    # Blocks of many sessions lie apart, and each is read for few rows.
    many = [Segment(run=[0], start=BLOCK_SIZE - 1, blocks=(block,)) for block in range(usable)]
    per_block = max(per_block, (seconds(many) - seconds(rows_of(usable))) / (usable - 1))
    start = (usable - 1) * BLOCK_SIZE
    prompt = Segment(run=[0] * BLOCK_SIZE, start=start, blocks=tuple(range(usable)))
    per_row_and_block = (seconds([prompt]) - seconds(rows_of(BLOCK_SIZE))) / (BLOCK_SIZE * (usable - 1))
    return StepCost(rows, per_block, per_row_and_block)
