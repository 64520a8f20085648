"""Keys and values of all sessions: a pool of slots, a table of blocks per session, compaction."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


class OutOfBlocksError(RuntimeError):
    """No free block is left; the caller makes room or waits."""


class KVPool:
    """One slot per token and layer; a block is `block_size` neighbouring slots.

    `keys` are [layers, kv_heads, slots, head_dim]. `values` are [layers, kv_heads, slots, head_dim +
    ONES]: the columns after the value hold ones, so that one matrix product gives weighted values and,
    beside them, the sum of the weights.
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
        self.head_dim = head_dim
        self.keys = _zeros((layers, kv_heads, blocks * block_size, head_dim), dtype, device)
        self.values = _zeros((layers, kv_heads, blocks * block_size, head_dim + self.ONES), dtype, device)
        self._ones = torch.ones(1, 1, 1, dtype=dtype, device=device)

    def write(self, layer: int, slots: Tensor, keys: Tensor, values: Tensor) -> None:
        """Put rows, keys and values [kv_heads, rows, head_dim], into slots [rows] of one layer."""
        self.keys[layer].index_copy_(1, slots, keys)
        ones = self._ones.expand(values.shape[0], values.shape[1], self.ONES)
        self.values[layer].index_copy_(1, slots, torch.cat([values, ones], dim=-1))

    def read(self, layer: int, slots: slice | Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values [kv_heads, slots, ...] of one layer; in place where the slots are a slice."""
        if isinstance(slots, slice):
            return self.keys[layer, :, slots], self.values[layer, :, slots]
        return self.keys[layer].index_select(1, slots), self.values[layer].index_select(1, slots)

    def move(self, sources: Tensor, targets: Tensor) -> None:
        """Copy slots to other slots in every layer at once; nothing where both are the same."""
        moving = sources != targets
        if not bool(moving.any()):
            return
        sources, targets = sources[moving], targets[moving]
        self.keys[:, :, targets] = self.keys[:, :, sources]
        self.values[:, :, targets] = self.values[:, :, sources]


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Zeros that take no memory on the CPU before they are written: numpy leaves that to calloc."""
    if device.type == "cpu" and dtype is torch.float32:
        return torch.from_numpy(np.zeros(shape, dtype=np.float32))
    return torch.zeros(shape, dtype=dtype, device=device)


class BlockAllocator:
    """Hands out block numbers; a session's next block is its neighbour wherever that one is free."""

    def __init__(self, blocks: int) -> None:
        self._free = set(range(blocks))
        self.total = blocks

    @property
    def free(self) -> int:
        """Blocks that nobody holds."""
        return len(self._free)

    def extend(self, table: list[int], count: int) -> None:
        """Append blocks to `table` until it has `count`; all or nothing. Raises `OutOfBlocksError`."""
        wanted = count - len(table)
        if wanted <= 0:
            return
        if wanted > len(self._free):
            raise OutOfBlocksError(f"{wanted} KV blocks wanted, {len(self._free)} are free")
        for _ in range(wanted):
            neighbour = table[-1] + 1 if table else -1
            block = neighbour if neighbour in self._free else self._start_of_largest_gap()
            self._free.discard(block)
            table.append(block)

    def release(self, table: list[int]) -> None:
        """Take all of a table's blocks back and empty it."""
        self._free.update(table)
        table.clear()

    def _start_of_largest_gap(self) -> int:
        """A block in the middle of the longest free run, so that its holder and its neighbour can grow."""
        best_start, best_length = -1, 0
        start, length = -1, 0
        for block in sorted(self._free):
            if block == start + length:
                length += 1
            else:
                start, length = block, 1
            if length > best_length:
                best_start, best_length = start, length
        at_edge = best_start == 0
        return best_start if at_edge else best_start + best_length // 2
