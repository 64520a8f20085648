"""Keys and values of all sessions: a pool of slots, and compaction. Who holds what: `engine.blocks`."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from paceline.engine.blocks import BlockTask


class KVPool:
    """One slot per token and layer; a block is `block_size` neighbouring slots.

    `keys` and `values` are [layers, kv_heads, blocks, block_size, head_dim]. With `transposed_keys` the keys
    of a block lie in memory as [head_dim, block_size], so that neighbouring keys fill a vector. With
    `clear_blocks` what attends may read slots that no row sees, and finds numbers there.
    """

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
        transposed_keys: bool = False,
        clear_blocks: bool = True,
    ) -> None:
        self.block_size = block_size
        self.num_blocks = blocks
        self.kv_heads = kv_heads
        self.head_dim = head_dim
        self.dtype = dtype
        self._clear_blocks = clear_blocks
        outer = (layers, kv_heads, blocks)
        if transposed_keys:
            self.keys = _zeros((*outer, head_dim, block_size), dtype, device).transpose(-1, -2)
        else:
            self.keys = _zeros((*outer, block_size, head_dim), dtype, device)
        self.values = _zeros((*outer, block_size, head_dim), dtype, device)

    def prepare(self, tasks: Sequence[BlockTask]) -> None:
        """Copy what sessions share, and make other blocks fit to be read before they are full.

        Whoever held them may have left infinities: times a weight of zero they are not nothing.
        """
        for task in tasks:
            for pool in (self.keys, self.values):
                if task.source is not None:
                    pool[:, :, task.block] = pool[:, :, task.source]
                elif self._clear_blocks:
                    pool[:, :, task.block] = 0

    def write(self, layer: int, slots: Tensor, keys: Tensor, values: Tensor) -> None:
        """Put rows, keys and values [kv_heads, rows, head_dim], into slots [rows] of one layer."""
        block, offset = slots // self.block_size, slots % self.block_size
        for pool, new in ((self.keys, keys), (self.values, values)):
            pool[layer, :, block, offset] = new.to(pool.dtype)

    def move(self, sources: Tensor, targets: Tensor) -> None:
        """Copy slots to other slots in every layer at once; nothing where both are the same."""
        moving = sources != targets
        if not bool(moving.any()):
            return
        here, there = sources[moving], targets[moving]
        for pool in (self.keys, self.values):
            pool[:, :, there // self.block_size, there % self.block_size] = pool[
                :, :, here // self.block_size, here % self.block_size
            ]


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Zeros that take no memory on the CPU before they are written: numpy leaves that to calloc."""
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    empty = np.zeros(math.prod(shape) * dtype.itemsize, dtype=np.uint8)
    return torch.from_numpy(empty).view(dtype).view(shape)
