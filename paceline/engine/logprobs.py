"""Log-probabilities of rows of logits."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from paceline.engine.ranking import highest
from paceline.logprobs import LOWEST, TokenLogprobs


def logprobs_of(logits: Tensor, tokens: Sequence[int], top: int) -> list[TokenLogprobs]:
    """Of one token of each row, and of the `top` likeliest; logits [rows, vocab], any dtype.

    Computed in float64 and rounded to single precision, row by row and on one thread: the bits depend on the
    row alone. NaN counts as the lowest logit.
    """
    return [_of_row(row, token, top) for row, token in zip(logits, tokens, strict=True)]


def _of_row(row: Tensor, token: int, top: int) -> TokenLogprobs:
    values = row.to("cpu", torch.float64, copy=True).numpy()
    np.nan_to_num(values, copy=False, nan=-np.inf, posinf=np.inf, neginf=-np.inf)
    ids = highest(row[None], top)[0].tolist() if top else []
    most = values.max()
    if np.isinf(most):
        # The likeliest tokens share everything: of an infinite logit, or of a row without any.
        logprobs = np.where(values == most, -np.log(np.count_nonzero(values == most)), -np.inf)
    else:
        logprobs = values - (most + np.log(np.exp(values - most).sum()))
    rank = 1 + int(np.count_nonzero(values > values[token]))
    return TokenLogprobs(
        _single(logprobs[token]), rank, tuple(ids), tuple(_single(logprobs[each]) for each in ids)
    )


def _single(value: float) -> float:
    return float(np.float32(max(value, LOWEST)))
