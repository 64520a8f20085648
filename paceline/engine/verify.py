"""From logits to decisions: the tokens each session commits, and the feedback for its drafter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from paceline.engine.accept import walk
from paceline.engine.logits.draw import targets
from paceline.engine.logprobs import logprobs_of
from paceline.engine.ranking import highest
from paceline.engine.rows import RaggedBatch
from paceline.logprobs import TokenLogprobs
from paceline.sampling import SamplingParams


@dataclass(frozen=True, slots=True)
class Decision:
    """One session's outcome: accepted tree nodes in order, the target's own next token, feedback."""

    path: tuple[int, ...]
    bonus: int
    # The target's likeliest ids of the root's row and of each node's, `top_k` per row, end to end.
    top_ids: tuple[int, ...] = ()
    top_k: int = 0
    # Of the accepted nodes' tokens and of the bonus, where the session wants them.
    logprobs: tuple[TokenLogprobs, ...] = ()


def decide(
    batch: RaggedBatch,
    logits: Tensor,
    sampling: Sequence[SamplingParams],
    feedback_top_k: Sequence[int],
    top_logprobs: Sequence[int | None],
) -> list[Decision]:
    """One decision per segment that wants logits, in order; `logits` are those of `batch.logit_rows`.

    `feedback_top_k`: ids of each row that go to the session's drafter. `top_logprobs`: likeliest tokens whose
    log-probabilities go with each token of the text; None: none, not even the token's own.
    """
    drawn = [placed.drawn for placed in batch.segments if placed.segment.wants_logits]
    if not drawn:
        return []
    roots = [rows.start for rows in drawn]
    owner = {row: session for session, rows in enumerate(drawn) for row in range(rows.start, rows.stop)}
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
    tokens = batch.token_ids[batch.logit_rows].tolist()
    decisions: list[Decision] = []
    for walked, rows, wanted, top in zip(walks, drawn, feedback_top_k, top_logprobs, strict=True):
        ids = ranked[rows, :wanted] if ranked is not None else np.empty((rows.stop - rows.start, 0), np.int64)
        path = tuple(row - rows.start - 1 for row in walked.rows)
        logprobs: list[TokenLogprobs] = []
        if top is not None:
            text = [*(tokens[row] for row in walked.rows), walked.bonus]
            logprobs = logprobs_of(logits[[rows.start, *walked.rows]], text, top)
        decisions.append(
            Decision(path, walked.bonus, tuple(ids.ravel().tolist()), ids.shape[1], tuple(logprobs))
        )
    return decisions
