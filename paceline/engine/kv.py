"""Keys and values of all sessions: a pool of blocks, a table of blocks per session, compaction."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from paceline.engine.rows import RaggedBatch


class OutOfBlocksError(RuntimeError):
    """No free block is left; the caller makes room or waits."""


class KVPool:
    """Block storage of every layer, and the stash where tree nodes wait for the verdict.

    `keys` and `values` are [layers, blocks, kv_heads, block_size, head_dim]. A block is one chunk of
    attention, so a session whose blocks are neighbours is read in place, without gathering.
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
    ) -> None:
        shape = (layers, blocks, kv_heads, block_size, head_dim)
        self.keys = _zeros(shape, dtype, device)
        self.values = _zeros(shape, dtype, device)
        self.block_size = block_size
        self._stash: list[tuple[Tensor, Tensor]] = []

    @property
    def num_layers(self) -> int:
        """Layers that keep keys and values."""
        return self.keys.shape[0]

    def write(self, layer: int, blocks: Tensor, offsets: Tensor, keys: Tensor, values: Tensor) -> None:
        """Put rows, [kv_heads, rows, head_dim], at (block, offset) of one layer."""
        self.keys[layer].transpose(0, 1)[:, blocks, offsets] = keys
        self.values[layer].transpose(0, 1)[:, blocks, offsets] = values

    def write_runs(self, layer: int, batch: RaggedBatch, keys: Tensor, values: Tensor) -> None:
        """Put the rows of all runs into their slots; keys and values hold all rows of the forward."""
        if batch.tree_rows.numel():
            keys, values = keys[:, batch.run_rows], values[:, batch.run_rows]
        self.write(layer, batch.run_blocks, batch.run_offsets, keys, values)

    def read(self, layer: int, blocks: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Keys and values [blocks, kv_heads, block_size, head_dim]; a view where blocks are neighbours."""
        first, count = blocks[0], len(blocks)
        if blocks[-1] - first == count - 1 and all(
            block == first + index for index, block in enumerate(blocks)
        ):
            return self.keys[layer, first : first + count], self.values[layer, first : first + count]
        table = torch.tensor(blocks, device=self.keys.device)
        return self.keys[layer].index_select(0, table), self.values[layer].index_select(0, table)

    def begin_forward(self) -> None:
        """Forget the last forward's stash."""
        self._stash.clear()

    def stash(self, keys: Tensor, values: Tensor) -> None:
        """Keep one layer's tree rows, [kv_heads, tree rows, head_dim]; layers come in order."""
        self._stash.append((keys, values))

    def commit_stash(self, nodes: Tensor, blocks: Tensor, offsets: Tensor) -> None:
        """Move accepted tree nodes (indices into the stash) to their canonical slots, in every layer."""
        if nodes.numel() == 0:
            return
        for layer, (keys, values) in enumerate(self._stash):
            self.write(layer, blocks, offsets, keys[:, nodes], values[:, nodes])


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
