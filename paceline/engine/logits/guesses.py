"""What a drafter's row takes of a session's parameters: all that can be said without the session's text.

Drafts are guesses, so penalties and bad words of several ids are left out: the target has them in its rows.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from paceline.engine.logits.session import SessionLogits, endless
from paceline.sampling import SamplingParams


def steered(params: SamplingParams, position: int) -> bool:
    """Whether `steer` changes anything at this position."""
    return bool(
        endless(params, position)
        or params.logit_bias
        or params.allowed_token_ids
        or any(len(words) == 1 for words in params.bad_words)
    )


def steer(
    row: Tensor, params: SamplingParams, position: int, token_ids: NDArray[np.int64] | None = None
) -> Tensor:
    """A row's logits [vocab] without what may not be drawn, and with biases.

    `token_ids` [vocab] are the target's ids of the logits; None: they are the same. A drafter may have fewer
    ids than the target.
    """
    session = SessionLogits(params)
    ids = np.arange(len(row)) if token_ids is None else token_ids
    added = np.zeros(len(row))
    biased, values = session.bias
    if len(biased):
        place = np.minimum(np.searchsorted(biased, ids), len(biased) - 1)
        added = np.where(biased[place] == ids, values[place], added)
    if len(session.allowed):
        added[~np.isin(ids, session.allowed)] = -np.inf
    added[np.isin(ids, session.banned)] = -np.inf
    if endless(params, position):
        added[np.isin(ids, session.stop_ids)] = -np.inf
    return row + torch.from_numpy(added).to(row.device, row.dtype)
