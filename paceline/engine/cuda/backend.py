"""A GPU's parts of the engine behind `devices.Backend`. They also run on the CPU, as plain operators."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import PreTrainedModel

from paceline.engine import operators
from paceline.engine.attention import AttentionBackend
from paceline.engine.cuda.attention import FlexAttention


class CudaBackend:
    """FlexAttention between transformers' own modules."""

    def attention(self, *, heads: int) -> FlexAttention:
        """See `Backend.attention`."""
        return FlexAttention()

    def pack_linears(self, model: nn.Module) -> bool:
        """None are packed: the bits of the libraries' products depend on the number of rows."""
        return False

    def fuse(self, model: PreTrainedModel, attention: AttentionBackend) -> None:
        """There is no fused forward yet."""

    def highest(self, logits: Tensor, count: int) -> NDArray[np.int64]:
        """See `Backend.highest`."""
        return operators.highest(logits, count)
