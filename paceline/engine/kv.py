"""Keys and values of all sessions: a pool of slots, and compaction. `engine.blocks` assigns the blocks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum, auto
from types import EllipsisType

import numpy as np
import torch
from torch import Tensor

from paceline.engine.blocks import BlockTask


class KVLayout(Enum):
    """The memory layout of a block's keys and values."""

    # Both [block_size, head_dim].
    ROWS = auto()
    # Keys [head_dim, block_size]: neighbouring keys fill a vector. Values as above.
    COLUMNS = auto()
    # As the matrix unit reads bfloat16: keys [head_dim / 2, block_size, 2], values
    # [block_size / 2, head_dim, 2].
    PAIRS = auto()


@dataclass(frozen=True, slots=True)
class KVForm:
    """How a device's attention wants keys and values kept."""

    dtype: torch.dtype
    # Numbers of one head's key or value in the pool; may be more than the model's.
    head_dim: int
    layout: KVLayout = KVLayout.ROWS
    # See `KVPool`.
    clear_blocks: bool = True


class KVPool:
    """One slot per token and layer; a block is `block_size` neighbouring slots.

    `keys` and `values` are [layers, kv_heads, blocks, block_size, head_dim]. In pairs keys are an int32 for
    every two neighbours of the last dimension, and values have [block_size / 2, 2] for [block_size].
    `clear_blocks`: attention may read slots that no row sees, so blocks are zeroed before they are used.
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
        layout: KVLayout = KVLayout.ROWS,
        clear_blocks: bool = True,
    ) -> None:
        self.block_size = block_size
        self.num_blocks = blocks
        self.kv_heads = kv_heads
        self.head_dim = head_dim
        self.dtype = dtype
        self._clear_blocks = clear_blocks
        self.layout = layout
        outer = (layers, kv_heads, blocks)
        rows = (*outer, block_size, head_dim)
        match layout:
            case KVLayout.ROWS:
                self.keys, self.values = (zeros(rows, dtype, device) for _ in range(2))
            case KVLayout.COLUMNS:
                self.keys = zeros((*outer, head_dim, block_size), dtype, device).transpose(-1, -2)
                self.values = zeros(rows, dtype, device)
            case KVLayout.PAIRS:
                pairs = zeros((*outer, head_dim // 2, block_size), torch.int32, device)
                self.keys = pairs.transpose(-1, -2)
                self.values = zeros((*outer, block_size // 2, head_dim, 2), dtype, device).transpose(-1, -2)

    def prepare(self, tasks: Sequence[BlockTask]) -> None:
        """Copy blocks that sessions share, and zero other new blocks where attention needs it.

        An earlier holder may have left infinities, and zero times infinity is NaN.
        """
        for task in tasks:
            for pool in (self.keys, self.values):
                if task.source is not None:
                    pool[:, :, task.block] = pool[:, :, task.source]
                elif self._clear_blocks:
                    pool[:, :, task.block] = 0

    def write(self, layer: int, slots: Tensor, keys: Tensor, values: Tensor) -> None:
        """Put rows, keys and values [kv_heads, rows, head_dim], into slots [rows] of one layer."""
        for pool, new in ((self.keys, keys), (self.values, values)):
            pool[layer][self._place(pool, slots)] = new.to(self.dtype).contiguous().view(pool.dtype)

    def move(self, sources: Tensor, targets: Tensor) -> None:
        """Copy slots to other slots in every layer at once; nothing where both are the same."""
        moving = sources != targets
        if not bool(moving.any()):
            return
        for pool in (self.keys, self.values):
            here, there = (self._place(pool, slots[moving]) for slots in (sources, targets))
            pool[there] = pool[here]

    def _place(self, pool: Tensor, slots: Tensor) -> tuple[slice | EllipsisType | Tensor, ...]:
        """Index of slots' numbers in `keys` or `values`, of one layer or of all."""
        block, offset = slots // self.block_size, slots % self.block_size
        every = slice(None)
        return (
            (..., block, offset, every) if pool.dim() == 5 else (..., block, offset // 2, offset % 2, every)
        )


def zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Zeros that take no memory on the CPU before they are written: numpy leaves that to calloc."""
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    empty = np.zeros(math.prod(shape) * dtype.itemsize, dtype=np.uint8)
    return torch.from_numpy(empty).view(dtype).view(shape)
