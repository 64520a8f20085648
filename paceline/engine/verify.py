"""From logits to decisions: the tokens each session commits, and the feedback for its drafter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from paceline.engine.accept import walk
from paceline.engine.ranking import highest
from paceline.engine.rows import RaggedBatch
from paceline.engine.sampling import targets
from paceline.sampling import SamplingParams


@dataclass(frozen=True, slots=True)
class Decision:
    """One session's outcome: accepted tree nodes in order, the target's own next token, feedback."""

    path: tuple[int, ...]
    bonus: int
    # The target's likeliest ids of the root's row and of each node's, `top_k` per row, end to end.
    top_ids: tuple[int, ...] = ()
    top_k: int = 0


def decide(
    batch: RaggedBatch, logits: Tensor, sampling: Sequence[SamplingParams], feedback_top_k: Sequence[int]
) -> list[Decision]:
    """One decision per segment that wants logits, in order; `logits` are those of `batch.logit_rows`."""
    roots = [root for root in batch.roots.tolist() if root >= 0]
    if not roots:
        return []
    sizes = [stop - root for root, stop in zip(roots, [*roots[1:], logits.shape[0]], strict=True)]
    owner = [session for session, size in enumerate(sizes) for _ in range(size)]
    positions = batch.positions[batch.logit_rows].tolist()

    # The first id of a row's feedback is its greedy token.
    count = max(feedback_top_k, default=0)
    if any(params.temperature <= 0 for params in sampling):
        count = max(count, 1)
    ranked = highest(logits, count) if count else None

    def draw(rows: list[int]) -> list[int]:
        return targets(
            logits if len(rows) == logits.shape[0] else logits[rows],
            [sampling[owner[row]] for row in rows],
            [positions[row] + 1 for row in rows],
            None if ranked is None else ranked[rows, 0],
        )

    walks = walk(
        batch.token_ids[batch.logit_rows].cpu().numpy(), batch.logit_parents.cpu().numpy(), roots, draw
    )
    decisions: list[Decision] = []
    for walked, root, size, wanted in zip(walks, roots, sizes, feedback_top_k, strict=True):
        top = ranked[root : root + size, :wanted] if ranked is not None else np.empty((size, 0), np.int64)
        path = tuple(row - root - 1 for row in walked.rows)
        decisions.append(Decision(path, walked.bonus, tuple(top.ravel().tolist()), top.shape[1]))
    return decisions
