"""The parts of the engine that each kind of device computes in its own way, and which kind a device is.

The only shared module that imports a device's code, and only once it is asked for it (import contracts in
pyproject.toml): a process on a GPU never compiles the CPU's kernels.
"""

from __future__ import annotations

from functools import cache
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import PreTrainedModel

from paceline.engine.attention import AttentionBackend
from paceline.engine.kv import KVPool
from paceline.engine.rows import RaggedBatch
from paceline.engine.states import StatePool


class FusedForward(Protocol):
    """A whole forward without transformers' modules. One at a time."""

    def forward(self, batch: RaggedBatch, pool: KVPool, states: StatePool | None) -> Tensor:
        """Logits [logit rows, vocab] of `batch.logit_rows` in the weights' type; fills both pools."""


class Backend(Protocol):
    """One kind of device."""

    def attention(self, *, heads: int) -> AttentionBackend:
        """Attention for models with `heads` query heads."""

    def pack_linears(self, model: nn.Module) -> bool:
        """Replace linear layers of `model` in place by the device's own.

        Returns whether no product is left whose bits may depend on the rows beside a row.
        """

    def fuse(self, model: PreTrainedModel, attention: AttentionBackend) -> FusedForward | None:
        """A fused forward of a model whose linears are packed; None where the device has none for it.

        `attention` is this backend's own. The caller has to check that it computes what the modules compute.
        """

    def highest(self, logits: Tensor, count: int) -> NDArray[np.int64]:
        """See `ranking.highest`; 0 < count <= vocab."""


@cache
def backend_of(kind: str) -> Backend:
    """The backend of a kind of device (`torch.device.type`)."""
    if kind == "cpu":
        from paceline.engine.cpu.backend import CpuBackend

        return CpuBackend()
    # FlexAttention is compiled for every other kind too.
    from paceline.engine.cuda.backend import CudaBackend

    return CudaBackend()
