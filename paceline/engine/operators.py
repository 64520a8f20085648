"""What torch's own operators compute on any device."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def highest(logits: Tensor, count: int) -> NDArray[np.int64]:
    """See `ranking.highest`; ids behind the first come in any order among equals."""
    # Both of torch's take NaN for the largest.
    logits = logits.masked_fill(logits.isnan(), -torch.inf)
    ids = logits.topk(count, dim=-1).indices
    ids[:, 0] = logits.argmax(dim=-1)
    on_cpu: NDArray[np.int64] = ids.cpu().numpy()
    return on_cpu
