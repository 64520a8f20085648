"""All keys and values of a pool, whatever its layout: [layers, kv_heads, blocks, block_size, head_dim]."""

from __future__ import annotations

from torch import Tensor

from paceline.engine.kv import KVPool


def key_rows(pool: KVPool) -> Tensor:
    """A copy where keys lie in pairs."""
    return pool.keys if pool.keys.dtype == pool.dtype else pool.keys.contiguous().view(pool.dtype)


def value_rows(pool: KVPool) -> Tensor:
    """A copy where values lie in pairs."""
    return pool.values if pool.values.dim() == 5 else pool.values.flatten(3, 4)
