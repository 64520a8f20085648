"""Children of drafted rows: the tokens that the target would likeliest draw, given the session's noise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from drafter_svc.neural.growth import Candidates
from paceline.engine.logits.draw import noisy_scores
from paceline.engine.logits.guesses import steer, steered
from paceline.engine.ranking import highest
from paceline.sampling import SamplingParams


@dataclass(frozen=True, slots=True)
class Wish:
    """What is asked for of one session's rows; `positions`: where each row's children will stand.

    `children`: most of them for each row.
    """

    sampling: SamplingParams
    children: int
    positions: Sequence[int]


def choose(
    logits: Tensor, wishes: Sequence[Wish], token_ids: NDArray[np.int64] | None = None
) -> list[Candidates]:
    """Children of all sessions' rows, whose logits [rows, vocab] lie end to end.

    At temperature 0 the likeliest tokens, with their log-probabilities. Else those with the greatest
    logits / T + noise among the tokens that the session's filters leave, as the target draws: a drafter with
    the target's logits names the target's draw first. The log-probabilities are then those of a target whose
    logits / T differ from the drafter's by Gumbel noise of scale 1, which makes them a softmax of these sums.

    `token_ids` [vocab] are the target's ids of the logits; None: they are the same.
    """
    firsts = [0, *accumulate(len(wish.positions) for wish in wishes)]
    found = [_empty(len(wish.positions), min(wish.children, logits.shape[1])) for wish in wishes]
    greedy = [session for session, wish in enumerate(wishes) if wish.sampling.temperature <= 0]
    if greedy:
        _likeliest(logits, wishes, greedy, firsts, found, token_ids)
    for first, wish, chosen in zip(firsts, wishes, found, strict=False):
        if wish.sampling.temperature > 0:
            for place, position in enumerate(wish.positions):
                _draw(logits[first + place], wish.sampling, position, token_ids, chosen, place)
    return found


def _empty(rows: int, children: int) -> Candidates:
    return Candidates(np.zeros((rows, children), dtype=np.int64), np.full((rows, children), -np.inf))


def _likeliest(
    logits: Tensor,
    wishes: Sequence[Wish],
    sessions: Sequence[int],
    firsts: Sequence[int],
    found: Sequence[Candidates],
    token_ids: NDArray[np.int64] | None,
) -> None:
    """Fill in the candidates of sessions at temperature 0, all at once."""
    rows: list[int] = []
    for session in sessions:
        rows += range(firsts[session], firsts[session] + len(wishes[session].positions))
    values = logits if len(rows) == len(logits) else logits[rows]
    values = _steered(values, wishes, sessions, token_ids)
    ids = highest(values, max(found[session].ids.shape[1] for session in sessions))
    values = values.float()
    best = values.gather(1, torch.from_numpy(ids).to(values.device))
    log_probs = (best - values.logsumexp(1, keepdim=True)).double().cpu().numpy()
    if token_ids is not None:
        ids = token_ids[ids]
    row = 0
    for session in sessions:
        count, children = found[session].ids.shape
        found[session].ids[:] = ids[row : row + count, :children]
        found[session].log_probs[:] = log_probs[row : row + count, :children]
        row += count


def _steered(
    values: Tensor, wishes: Sequence[Wish], sessions: Sequence[int], token_ids: NDArray[np.int64] | None
) -> Tensor:
    """`values`, or a copy with the rows changed whose sessions ask for it."""
    row, out = 0, values
    for session in sessions:
        wish = wishes[session]
        for position in wish.positions:
            if steered(wish.sampling, position):
                out = values.clone() if out is values else out
                out[row] = steer(out[row], wish.sampling, position, token_ids)
            row += 1
    return out


def _draw(
    row: Tensor,
    params: SamplingParams,
    position: int,
    token_ids: NDArray[np.int64] | None,
    found: Candidates,
    place: int,
) -> None:
    """Fill in one row's candidates with noise."""
    if steered(params, position):
        row = steer(row, params, position, token_ids)
    kept, noisy = noisy_scores(row, params, position, token_ids)
    count = min(found.ids.shape[1], len(noisy))
    best = np.argpartition(-noisy, count - 1)[:count]
    best = best[np.argsort(-noisy[best], kind="stable")]
    ids = best if kept is None else kept[best]
    found.ids[place, :count] = ids if token_ids is None else token_ids[ids]
    top = noisy[best[0]]
    found.log_probs[place, :count] = noisy[best] - top - np.log(np.exp(noisy - top).sum())
