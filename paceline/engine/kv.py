"""Keys and values of all sessions: a pool of slots, and compaction. Who holds what: `engine.blocks`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from paceline.engine.blocks import BlockTask


class KVPool:
    """One slot per token and layer; a block is `block_size` neighbouring slots.

    `keys` are [layers, blocks, kv_heads, block_size, head_dim]. `values` are [..., head_dim + ONES]: the
    columns after the value hold ones, so that one matrix product gives weighted values and, beside
    them, the sum of the weights.
    """

    # Columns of ones: wide enough to be summed by the same kind of kernel as the values.
    ONES = 16

    def __init__(
        self,
        *,
        layers: int,
        kv_heads: int,
        head_dim: int,
        blocks: int,
        block_size: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.block_size = block_size
        self.kv_heads = kv_heads
        self.head_dim = head_dim
        shape = (layers, blocks, kv_heads, block_size)
        self.keys = _zeros((*shape, head_dim), dtype, device)
        self.values = _zeros((*shape, head_dim + self.ONES), dtype, device)
        # The same memory as rows: [layers, blocks * kv_heads * block_size, ...].
        self._key_rows = self.keys.view(layers, -1, head_dim)
        self._value_rows = self.values.view(layers, -1, head_dim + self.ONES)

    def prepare(self, tasks: Sequence[BlockTask]) -> None:
        """Make blocks fit to be read before they are full: whoever held them may have left infinities."""
        for task in tasks:
            if task.source is not None:
                self.keys[:, task.block] = self.keys[:, task.source]
                self.values[:, task.block] = self.values[:, task.source]
                continue
            self.keys[:, task.block] = 0
            self.values[:, task.block, ..., : self.head_dim] = 0
            self.values[:, task.block, ..., self.head_dim :] = 1

    def index(self, slots: Tensor) -> Tensor:
        """Where slots [rows] lie: [rows * kv_heads] for `write`."""
        head = torch.arange(self.kv_heads, device=slots.device)
        block = slots // self.block_size
        rows = (block[:, None] * self.kv_heads + head) * self.block_size + (slots % self.block_size)[:, None]
        return rows.flatten()

    def write(self, layer: int, index: Tensor, keys: Tensor, values: Tensor) -> None:
        """Put rows, keys and values [kv_heads, rows, head_dim], where `index` says in one layer."""
        for pool, new in ((self._key_rows, keys), (self._value_rows, values)):
            rows = new.transpose(0, 1).reshape(-1, self.head_dim).to(pool.dtype)
            pool[layer, :, : self.head_dim].index_copy_(0, index, rows)

    def read(self, layer: int, blocks: slice | Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values [blocks, kv_heads, block_size, ...] of one layer; in place for a slice."""
        return self.keys[layer, blocks], self.values[layer, blocks]

    def move(self, sources: Tensor, targets: Tensor) -> None:
        """Copy slots to other slots in every layer at once; nothing where both are the same."""
        moving = sources != targets
        if not bool(moving.any()):
            return
        here, there = self.index(sources[moving]), self.index(targets[moving])
        for pool in (self._key_rows, self._value_rows):
            pool[:, there] = pool[:, here]


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Zeros that take no memory on the CPU before they are written: numpy leaves that to calloc."""
    if device.type == "cpu" and dtype is torch.float32:
        return torch.from_numpy(np.zeros(shape, dtype=np.float32))
    return torch.zeros(shape, dtype=dtype, device=device)
