"""Attention of a ragged batch: each row sees its own session's prefix and its own ancestors.

transformers' modules call `ragged_attention` in every layer, which hands on to one of the backends:
`KernelAttention` on the CPU, `FlexAttention` elsewhere.
"""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor, nn

from paceline.engine.kv import KVPool
from paceline.engine.rows import RaggedBatch

NAME = "paceline"


class LayerAttention(Protocol):
    """A backend, ready for one forward."""

    def attend(
        self,
        layer: int,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        scale: float,
        softcap: float | None,
        window: int | None,
    ) -> Tensor:
        """Write the rows' keys and values to their slots, then attend.

        query [heads, rows, head_dim], key and value [kv_heads, rows, head_dim] -> [rows, heads, head_dim] in
        the query's dtype. A row sees `window` positions up to its own, or all.
        """


class AttentionBackend(Protocol):
    """How a device attends."""

    def begin(self, batch: RaggedBatch, pool: KVPool) -> LayerAttention:
        """Lay out what all layers of one forward need."""


def ragged_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    paceline: LayerAttention,
    scaling: float | None = None,
    softcap: float | None = None,
    sliding_window: int | None = None,
    **unused: Any,
) -> tuple[Tensor, None]:
    """The attention function that `transformers.AttentionInterface` calls in every layer.

    query [1, heads, rows, head_dim], key and value [1, kv_heads, rows, head_dim] ->
    [1, rows, heads, head_dim].
    """
    result = paceline.attend(
        int(module.layer_idx),  # type: ignore[arg-type]
        query[0],
        key[0],
        value[0],
        scale=query.shape[-1] ** -0.5 if scaling is None else scaling,
        softcap=softcap,
        window=sliding_window,
    )
    return result[None], None
