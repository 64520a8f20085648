"""The target's own token of a row: greedy and sampled are one rule, argmax of logits / T + noise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from paceline import noise
from paceline.engine.logits.filters import kept_tokens
from paceline.engine.logits.process import Processed, process
from paceline.engine.logits.session import LogitsRow
from paceline.engine.ranking import highest
from paceline.sampling import SamplingParams

# In place of a token where a row can draw none.
NO_TOKEN = -1
# Stands for infinity among scores; differences of two stay finite.
_HUGE = 1e300


@dataclass(frozen=True, slots=True)
class Draws:
    """A token of each row; `NO_TOKEN` of those in `faults`, by what went wrong."""

    tokens: list[int]
    faults: dict[int, Exception] = field(default_factory=dict)


def targets(logits: Tensor, rows: Sequence[LogitsRow], likeliest: NDArray[np.int64] | None = None) -> Draws:
    """The token each row draws: logits [rows, vocab].

    Logits are processed as the row's session asks (`engine.logits.process`). Then T = 0: the largest logit,
    ties to the lowest id. T > 0: the largest logit / T + Gumbel noise keyed by (seed, position, token) among
    the tokens that the filters leave, which draws from exactly the processed distribution (Maddison et al.
    2014, "A* sampling", section 2). A row depends on nothing but itself. NaN counts as the lowest logit.
    `likeliest` [rows] are the largest logits' ids, where the caller has them.
    """
    adjusted = [place for place, row in enumerate(rows) if row.adjusted]
    processed = Processed(logits)
    if adjusted:
        chosen = logits if len(adjusted) == len(rows) else logits[adjusted]
        processed = process(chosen, [rows[place] for place in adjusted])
    at = {place: index for index, place in enumerate(adjusted)}
    sampled = [place for place, row in enumerate(rows) if row.params.temperature > 0]
    tokens = _greedy(logits, rows, likeliest) if len(sampled) < len(rows) else [0] * len(rows)
    greedy = [place for place in adjusted if rows[place].params.temperature <= 0]
    if greedy:
        own = highest(processed.logits[[at[place] for place in greedy]], 1)[:, 0].tolist()
        for place, token in zip(greedy, own, strict=True):
            tokens[place] = token
    for place in sampled:
        values = processed.logits[at[place]] if place in at else logits[place]
        kept, noisy = noisy_scores(values, rows[place].params, rows[place].position)
        best = int(noisy.argmax())
        tokens[place] = best if kept is None else int(kept[best])
    faults = {adjusted[index]: error for index, error in processed.faults.items()}
    for place in faults:
        tokens[place] = NO_TOKEN
    return Draws(tokens, faults)


def _greedy(logits: Tensor, rows: Sequence[LogitsRow], likeliest: NDArray[np.int64] | None) -> list[int]:
    """Each row's likeliest token, where nothing is done to its logits."""
    found: list[int] = (highest(logits, 1)[:, 0] if likeliest is None else likeliest).tolist()
    return found


def _scores(row: Tensor, temperature: float) -> NDArray[np.float64]:
    """logits / T in float64; the largest is finite. -inf, a token that is masked, may stay."""
    scores: NDArray[np.float64] = row.to("cpu", torch.float64, copy=True).numpy()
    scores /= temperature
    if not np.isfinite(scores.max()):
        # NaN or +inf somewhere, or nothing but -inf: even such a row has a likeliest token.
        scores = np.nan_to_num(scores, nan=-_HUGE, posinf=_HUGE, neginf=-np.inf)
        if scores.max() == -np.inf:
            scores[:] = -_HUGE
    return scores


def noisy_scores(
    row: Tensor, params: SamplingParams, position: int, token_ids: NDArray[np.int64] | None = None
) -> tuple[NDArray[np.int64] | None, NDArray[np.float64]]:
    """logits / T + noise of the tokens that the filters leave, and which these are (None: all); T > 0.

    Indices into `row`, ascending. The noise is that of the tokens `token_ids` [vocab]; None: of the indices.
    """
    scores = _scores(row, params.temperature)
    kept = kept_tokens(scores, params)
    tokens = kept if token_ids is None else token_ids if kept is None else token_ids[kept]
    noisy = noise.gumbel(params.seed, position, len(scores), tokens)
    noisy += scores if kept is None else scores[kept]
    return kept, noisy
