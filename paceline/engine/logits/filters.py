"""Filters of a row's scores: which tokens may be drawn at all."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from paceline.sampling import SamplingParams

# So many tokens are sorted at first.
_SORTED = 1024


def kept_tokens(scores: NDArray[np.float64], params: SamplingParams) -> NDArray[np.int64] | None:
    """Ids, ascending, that the filters leave of logits / T; None when they leave all.

    In transformers' order: top_k, top_p over what is left, min_p against the likeliest, typical_p.
    Equal scores are ranked by id, lowest first. The largest score must be finite.
    """
    vocab, highest = len(scores), scores.max()
    kept: NDArray[np.int64] | None = None
    if 0 < params.top_k < vocab:
        floor = np.partition(scores, vocab - params.top_k)[vocab - params.top_k]
        kept = _ranked_first(scores, np.flatnonzero(scores >= floor), floor, params.top_k)
    if params.top_p < 1:
        kept = _nucleus(scores, kept, params.top_p)
    if params.min_p > 0:
        floor = highest + np.log(params.min_p)
        kept = np.flatnonzero(scores >= floor) if kept is None else kept[scores[kept] >= floor]
    if params.typical_p < 1:
        kept = _typical(scores, kept, params.typical_p)
    return kept


def _nucleus(scores: NDArray[np.float64], kept: NDArray[np.int64] | None, top_p: float) -> NDArray[np.int64]:
    """The fewest of `kept` (None: all), by rank, whose probability reaches `top_p`."""
    values = scores if kept is None else scores[kept]
    highest = values.max()
    weights = np.exp(values - highest)
    total = weights.sum()
    # Only these are sorted. The others' weights are so small that all of them together hold no more than
    # 1 - top_p: the tokens ranked before them reach top_p by themselves.
    # Of equals, or of one token, some are left where 1 - top_p rounds to 1, too.
    likely = np.flatnonzero(weights >= (1 - top_p) * total / len(weights))
    ranked = np.sort(values[likely])[::-1]
    reached = np.cumsum(np.exp(ranked - highest))
    count = 1 + int(np.searchsorted(reached[:-1], top_p * total))
    ids = likely if kept is None else kept[likely]
    return _ranked_first(scores, ids, ranked[count - 1], count)


def _ranked_first(
    scores: NDArray[np.float64], ids: NDArray[np.int64], floor: np.float64, count: int
) -> NDArray[np.int64]:
    """`count` of the ascending `ids`: those with scores above `floor`, then the lowest ids at it."""
    values = scores[ids]
    chosen = values > floor
    equal = np.flatnonzero(values == floor)
    chosen[equal[: count - np.count_nonzero(chosen)]] = True
    return ids[chosen]


def _typical(scores: NDArray[np.float64], kept: NDArray[np.int64] | None, mass: float) -> NDArray[np.int64]:
    """The fewest of `kept` (None: all), nearest to the expected information first, that reach `mass`.

    Meister et al. 2022, "Locally typical sampling", section 4. Of equal distances the lowest id is first.
    """
    values = scores if kept is None else scores[kept]
    shares = np.exp(values - values.max())
    total = shares.sum()
    information = np.log(total) - (values - values.max())
    shares /= total
    possible = shares > 0
    entropy = shares[possible] @ information[possible]
    distances = np.abs(information - entropy)
    some = _SORTED
    while True:
        # Only these are sorted; they nearly always hold enough.
        near = np.arange(len(distances))
        if some < len(distances):
            near = np.flatnonzero(distances <= np.partition(distances, some)[some])
        ranked = near[np.argsort(distances[near], kind="stable")]
        reached = np.cumsum(shares[ranked])
        if reached[-1] >= mass or len(near) == len(distances):
            break
        some *= 8
    chosen = np.sort(ranked[: 1 + int(np.searchsorted(reached[:-1], mass))])
    return chosen if kept is None else kept[chosen]
