"""The target's own token of a row: greedy and sampled are one rule, argmax of logits / T + noise."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from paceline.engine import noise
from paceline.session import SamplingParams

# Stands for infinity among scores; differences of two stay finite.
_HUGE = 1e300


def targets(logits: Tensor, sampling: Sequence[SamplingParams], positions: Sequence[int]) -> list[int]:
    """The token each row draws: logits [rows, vocab] float32, `positions` where the tokens will stand.

    T = 0: the largest logit, ties to the lowest id. T > 0: the largest logit / T + Gumbel noise keyed
    by (seed, position, token) among the tokens that top_k, then top_p, then min_p leave, which draws
    from exactly the processed distribution (Maddison et al. 2014, "A* sampling", section 2). A row
    depends on nothing but itself. NaN counts as the lowest logit.
    """
    drawn: list[int] = torch.nan_to_num(logits, nan=-torch.inf).argmax(dim=-1).tolist()
    for row, (params, position) in enumerate(zip(sampling, positions, strict=True)):
        if params.temperature > 0:
            scores = logits[row].to("cpu", torch.float64).numpy() / params.temperature
            # Finite, so that even a row of nothing but NaN or infinities has a likeliest token.
            finite = np.nan_to_num(scores, nan=-_HUGE, posinf=_HUGE, neginf=-_HUGE)
            drawn[row] = _draw(finite, params, position)
    return drawn


def _draw(scores: NDArray[np.float64], params: SamplingParams, position: int) -> int:
    kept = kept_tokens(scores, params)
    noisy = noise.gumbel(params.seed, position, len(scores), kept)
    noisy += scores if kept is None else scores[kept]
    best = int(noisy.argmax())
    return best if kept is None else int(kept[best])


def kept_tokens(scores: NDArray[np.float64], params: SamplingParams) -> NDArray[np.int64] | None:
    """Ids, ascending, that the filters leave of logits / T; None when they leave all.

    In transformers' order: top_k, then top_p over what is left, then min_p against the likeliest.
    Equal scores are ranked by id, lowest first.
    """
    vocab = len(scores)
    top_k = params.top_k if 0 < params.top_k < vocab else 0
    if not top_k and params.top_p >= 1 and params.min_p <= 0:
        return None
    if top_k:
        # All that reach the k-th score, then exactly k of them by rank.
        floor = np.partition(scores, vocab - top_k)[vocab - top_k]
        kept = np.flatnonzero(scores >= floor)
    else:
        kept = np.arange(vocab)
    if params.min_p > 0 and params.top_p >= 1:
        kept = kept[scores[kept] >= scores[kept].max() + np.log(params.min_p)] if not top_k else kept
    ranked = kept[np.argsort(-scores[kept], kind="stable")]
    if top_k:
        ranked = ranked[:top_k]
    if params.top_p < 1:
        weights = np.exp(scores[ranked] - scores[ranked[0]])
        before = np.cumsum(weights) - weights
        ranked = ranked[before < params.top_p * weights.sum()]
    if params.min_p > 0:
        ranked = ranked[scores[ranked] >= scores[ranked[0]] + np.log(params.min_p)]
    return np.sort(ranked)
