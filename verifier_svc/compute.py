"""A step's arithmetic: forward, draw, walk the trees, move the accepted KV. Knows no session's state."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from paceline.engine.kv import KVPool
from paceline.engine.model import BLOCK_SIZE, Decoder
from paceline.engine.rows import Segment
from paceline.engine.verify import Decision, decide
from paceline.sampling import SamplingParams
from verifier_svc.isolation import Drawn
from verifier_svc.scheduler import PlannedRows


class StepCompute:
    """Computes planned rows on one pool; may be called again for the same rows."""

    def __init__(self, decoder: Decoder, pool: KVPool) -> None:
        self._decoder = decoder
        self._pool = pool

    def __call__(self, rows: Sequence[PlannedRows], top_k: Callable[[PlannedRows], int]) -> Drawn:
        """What the rows that want logits came to; `top_k` ids per row go to their drafter."""
        batch = self._decoder.batch([row.segment for row in rows])
        logits = self._decoder.forward(batch, self._pool)
        drawing = [row for row in rows if row.segment.wants_logits]
        decisions = decide(
            batch, logits, [row.session.sampling for row in drawing], [top_k(row) for row in drawing]
        )
        self._compact(drawing, decisions)
        return list(zip(drawing, decisions, strict=True))

    def sound(self, block: int) -> bool:
        """Whether a row that belongs to nobody can be computed, in a block that belongs to nobody."""
        try:
            batch = self._decoder.batch([Segment([0], 0, (block,))])
            decide(batch, self._decoder.forward(batch, self._pool), [SamplingParams(max_tokens=1)], [0])
        except Exception:
            return False
        return True

    def _compact(self, rows: Sequence[PlannedRows], decisions: Sequence[Decision]) -> None:
        """Move accepted nodes' KV to their positions' slots, all sessions in one indexed copy."""
        sources: list[int] = []
        targets: list[int] = []
        for row, decision in zip(rows, decisions, strict=True):
            first = row.segment.root_index + 1
            for depth, node in enumerate(decision.path):
                sources.append(row.segment.slot(first + node, BLOCK_SIZE))
                targets.append(row.segment.slot(first + depth, BLOCK_SIZE))
        if sources != targets:
            device = self._pool.keys.device
            self._pool.move(torch.tensor(sources, device=device), torch.tensor(targets, device=device))
