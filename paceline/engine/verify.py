"""From logits to decisions: what each session's step committed, and the feedback its drafter wants."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from paceline.engine.accept import walk
from paceline.engine.rows import RaggedBatch
from paceline.engine.sampling import targets
from paceline.session import SamplingParams


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

    def draw(rows: list[int]) -> list[int]:
        return targets(
            logits if len(rows) == logits.shape[0] else logits[rows],
            [sampling[owner[row]] for row in rows],
            [positions[row] + 1 for row in rows],
        )

    walks = walk(
        batch.token_ids[batch.logit_rows].cpu().numpy(), batch.logit_parents.cpu().numpy(), roots, draw
    )
    feedback = _feedback(logits, roots, sizes, feedback_top_k)
    return [
        Decision(tuple(row - root - 1 for row in walked.rows), walked.bonus, ids, len(ids) // size)
        for walked, root, size, ids in zip(walks, roots, sizes, feedback, strict=True)
    ]


def _feedback(
    logits: Tensor, roots: Sequence[int], sizes: Sequence[int], wanted: Sequence[int]
) -> list[tuple[int, ...]]:
    most = max(wanted, default=0)
    if not most:
        return [()] * len(roots)
    # Which of equal ids comes first does not matter here: feedback only ranks guesses.
    ids = logits.topk(min(most, logits.shape[1]), dim=-1).indices
    return [
        tuple(torch.flatten(ids[root : root + size, :top_k]).tolist()) if top_k else ()
        for root, size, top_k in zip(roots, sizes, wanted, strict=True)
    ]
