"""The target's own token of a row: greedy and sampled are one rule, argmax of logits / T + noise."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from paceline import noise
from paceline.engine.logits.filters import kept_tokens
from paceline.engine.ranking import highest
from paceline.sampling import SamplingParams

# Stands for infinity among scores; differences of two stay finite.
_HUGE = 1e300


def targets(
    logits: Tensor,
    sampling: Sequence[SamplingParams],
    positions: Sequence[int],
    likeliest: NDArray[np.int64] | None = None,
) -> list[int]:
    """The token each row draws: logits [rows, vocab], `positions` where the tokens will stand.

    T = 0: the largest logit, ties to the lowest id. T > 0: the largest logit / T + Gumbel noise keyed
    by (seed, position, token) among the tokens that top_k, then top_p, then min_p leave, which draws
    from exactly the processed distribution (Maddison et al. 2014, "A* sampling", section 2). Below
    `stop_from` no id of `stop_token_ids` is drawn. A row depends on nothing but itself. NaN counts as the
    lowest logit. `likeliest` [rows] are the largest logits' ids, where the caller has them.
    """
    sampled = [row for row, params in enumerate(sampling) if params.temperature > 0]
    if len(sampled) == len(sampling):
        drawn = [0] * len(sampled)
    else:
        drawn = (highest(logits, 1)[:, 0] if likeliest is None else likeliest).tolist()
    for row, params in enumerate(sampling):
        if params.temperature <= 0 and endless(params, positions[row]):
            drawn[row] = int(highest(masked(logits[row], params)[None], 1)[0, 0])
    for row in sampled:
        params, values = sampling[row], logits[row]
        if endless(params, positions[row]):
            values = masked(values, params)
        kept, noisy = noisy_scores(values, params, positions[row])
        best = int(noisy.argmax())
        drawn[row] = best if kept is None else int(kept[best])
    return drawn


def endless(params: SamplingParams, position: int) -> bool:
    """Whether the text must not end at this position."""
    return position < params.stop_from and bool(params.stop_token_ids)


def masked(row: Tensor, params: SamplingParams, token_ids: NDArray[np.int64] | None = None) -> Tensor:
    """A row's logits without the ids that end a text; `token_ids`: see `noisy_scores`.

    A drafter's row may have fewer ids than the target.
    """
    stops = [token for token in sorted(params.stop_token_ids) if token_ids is not None or token < len(row)]
    out = row.clone()
    out[stops if token_ids is None else np.flatnonzero(np.isin(token_ids, stops))] = -torch.inf
    return out


def _scores(row: Tensor, temperature: float) -> NDArray[np.float64]:
    """logits / T in float64; the largest is finite. -inf, a token that is masked, may stay."""
    scores: NDArray[np.float64] = row.to("cpu", torch.float64, copy=True).numpy()
    scores /= temperature
    if not np.isfinite(scores.max()):
        # NaN or +inf somewhere, or nothing but -inf: even such a row has a likeliest token.
        scores = np.nan_to_num(scores, nan=-_HUGE, posinf=_HUGE, neginf=-_HUGE)
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
