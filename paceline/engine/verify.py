"""From logits to decisions: the tokens each session commits, and the feedback for its drafter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from paceline.engine.accept import walk
from paceline.engine.logits.draw import NO_TOKEN, targets
from paceline.engine.logits.matcher import Matcher
from paceline.engine.logits.session import LogitsRow, SessionLogits
from paceline.engine.logprobs import logprobs_of
from paceline.engine.ranking import highest
from paceline.engine.rows import RaggedBatch
from paceline.logprobs import TokenLogprobs


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
    # Why no token can be drawn behind the text, if so; then `path` is empty and `bonus` no token.
    fault: Exception | None = None


def decide(
    batch: RaggedBatch,
    logits: Tensor,
    sessions: Sequence[SessionLogits],
    matchers: Sequence[Matcher | None],
    feedback_top_k: Sequence[int],
    top_logprobs: Sequence[int | None],
) -> list[Decision]:
    """One decision per segment that wants logits, in order; `logits` are those of `batch.logit_rows`.

    `feedback_top_k`: ids of each row that go to the session's drafter. `top_logprobs`: likeliest tokens whose
    log-probabilities go with each token of the text; None: none, not even the token's own. A session stops
    before a row that can draw no token: with the next step that row is its root, and its fault is told.
    """
    drawn = [placed.drawn for placed in batch.segments if placed.segment.wants_logits]
    if not drawn:
        return []
    roots = [rows.start for rows in drawn]
    owner = {row: session for session, rows in enumerate(drawn) for row in range(rows.start, rows.stop)}
    positions = batch.positions[batch.logit_rows].tolist()

    # The first id of a row's feedback is its greedy token.
    count = max(feedback_top_k, default=0)
    if any(session.params.temperature <= 0 for session in sessions):
        count = max(count, 1)
    ranked = highest(logits, count) if count else None

    token_ids, parents = batch.token_ids[batch.logit_rows].cpu().numpy(), batch.logit_parents.cpu().numpy()
    tokens = token_ids.tolist()
    faults: dict[int, Exception] = {}

    def asked(row: int) -> LogitsRow:
        session, matcher = sessions[owner[row]], matchers[owner[row]]
        path: list[int] = []
        position = positions[row] + 1
        if session.looks_back or matcher is not None:
            while parents[row] >= 0:
                path.append(tokens[row])
                row = parents[row]
        return LogitsRow(session, position, path[::-1], matcher)

    def draw(rows: list[int]) -> list[int]:
        draws = targets(
            logits if len(rows) == logits.shape[0] else logits[rows],
            [asked(row) for row in rows],
            None if ranked is None else ranked[rows, 0],
        )
        faults.update((rows[place], error) for place, error in draws.faults.items())
        return draws.tokens

    walks = walk(token_ids, parents, roots, draw)
    decisions: list[Decision] = []
    for walked, rows, wanted, top in zip(walks, drawn, feedback_top_k, top_logprobs, strict=True):
        ids = ranked[rows, :wanted] if ranked is not None else np.empty((rows.stop - rows.start, 0), np.int64)
        accepted, bonus = walked.rows, walked.bonus
        if bonus == NO_TOKEN and accepted:
            accepted, bonus = accepted[:-1], tokens[accepted[-1]]
        path = tuple(row - rows.start - 1 for row in accepted)
        fault = faults[rows.start] if bonus == NO_TOKEN else None
        logprobs: list[TokenLogprobs] = []
        if top is not None and fault is None:
            text = [*(tokens[row] for row in accepted), bonus]
            logprobs = logprobs_of(logits[[rows.start, *accepted]], text, top)
        decisions.append(
            Decision(path, bonus, tuple(ids.ravel().tolist()), ids.shape[1], tuple(logprobs), fault)
        )
    return decisions
