"""The CPU's parts of the engine behind `devices.Backend`."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import PreTrainedModel

from paceline.engine.attention import AttentionBackend
from paceline.engine.cpu import fused, linear, ranking
from paceline.engine.cpu.attention import KernelAttention
from paceline.engine.cpu.fused import FusedDecoder


class CpuBackend:
    """Kernels compiled by numba."""

    def attention(self, *, heads: int) -> KernelAttention:
        """See `Backend.attention`."""
        return KernelAttention(heads=heads)

    def pack_linears(self, model: nn.Module) -> bool:
        """See `Backend.pack_linears`."""
        return linear.pack_linears(model)

    def fuse(self, model: PreTrainedModel, attention: AttentionBackend) -> FusedDecoder | None:
        """See `Backend.fuse`."""
        assert isinstance(attention, KernelAttention)
        return fused.fuse(model, attention)

    def highest(self, logits: Tensor, count: int) -> NDArray[np.int64]:
        """See `Backend.highest`."""
        return ranking.highest(logits, count)
