"""Attention on the CPU: what `engine.kernels` needs of a batch, laid out once a forward."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from paceline.engine.kernels import attention as kernels
from paceline.engine.kernels.vectors import ELEMENTS
from paceline.engine.kv import KVPool
from paceline.engine.rows import PlacedSegment, RaggedBatch
from paceline.engine.team import Kernel

# Query rows, times the heads of a group, that share one pass over a key block while it is in the cache.
TILE_QUERIES = 24
LOG2_E = math.log2(math.e)

_write_rows, _attend = Kernel(kernels.write_rows.address), Kernel(kernels.attend.address)


class KernelAttention:
    """The backend of CPUs. One forward at a time."""

    def __init__(self, *, heads: int) -> None:
        self._heads = heads
        self._scratch = np.empty(0, dtype=np.float32)

    def begin(self, batch: RaggedBatch, pool: KVPool) -> _Forward:
        """Lay out the batch's tiles, and scratch for each thread."""
        forward = _Forward(batch, pool, self._heads)
        threads = torch.get_num_threads()
        needed = threads * forward.scratch_floats
        if needed > self._scratch.size:
            self._scratch = np.empty(needed, dtype=np.float32)
        forward.use(self._scratch, threads)
        return forward


class _Forward:
    def __init__(self, batch: RaggedBatch, pool: KVPool, heads: int) -> None:
        self._pool = pool
        self._heads = heads
        self._threads = 1
        group = heads // pool.kv_heads
        self._rows, self._ancestors = _visible(batch)
        self._blocks = np.array([block for placed in batch.segments for block in placed.blocks])
        self._tiles = _tiles(batch, self._rows, pool.kv_heads, max(1, TILE_QUERIES // group))
        self._slots = batch.slots.numpy()
        queries = int(self._tiles["num_rows"].max(initial=0)) * group
        # Whole blocks: a product fills them.
        score_floats = -(-int(self._tiles["num_keys"].max(initial=0)) // pool.block_size) * pool.block_size
        # Threads must not write to one cache line.
        self.scratch_floats = -(-queries * (2 * pool.head_dim + 1 + score_floats) // 16) * 16 + 16
        self._task = np.zeros((), dtype=kernels.TASK)
        self._address = self._task.ctypes.data
        self._strides: tuple[object, ...] = ()
        self._keys, self._values = pool.keys.data_ptr(), pool.values.data_ptr()
        self._layer_bytes = pool.values[0].nbytes
        for name, array in (
            ("tiles", self._tiles),
            ("rows", self._rows),
            ("ancestors", self._ancestors),
            ("blocks", self._blocks),
            ("slots", self._slots),
        ):
            self._task[name] = array.ctypes.data
        for name, number in (
            ("num_tiles", len(self._tiles)),
            ("num_rows", batch.num_rows),
            ("num_blocks", pool.num_blocks),
            ("block_size", pool.block_size),
            ("kv_heads", pool.kv_heads),
            ("group_heads", group),
            ("pool_dim", pool.head_dim),
            ("element", ELEMENTS[pool.dtype]),
            ("score_floats", score_floats),
            ("scratch_floats", self.scratch_floats),
        ):
            self._task[name] = number

    def use(self, scratch: NDArray[np.float32], threads: int) -> None:
        """Compute on so many threads, each with its share of `scratch`, which this keeps alive."""
        self._threads, self._scratch = threads, scratch
        self._task["scratch"] = scratch.ctypes.data

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
        """See `LayerAttention.attend`."""
        pool, task = self._pool, self._task
        _, rows, head_dim = query.shape
        out = torch.empty(rows, self._heads, head_dim, dtype=pool.dtype)
        # Kept until the kernels are done with their memory.
        query_in, key_in, value_in = (_dense(tensor, pool.dtype) for tensor in (query, key, value))
        strides = (head_dim, query_in.stride(), key_in.stride(), value_in.stride())
        if strides != self._strides:
            self._set_strides(*strides)
        task["query"], task["key"], task["value"] = (
            query_in.data_ptr(),
            key_in.data_ptr(),
            value_in.data_ptr(),
        )
        task["out"] = out.data_ptr()
        task["keys"] = self._keys + layer * self._layer_bytes
        task["values"] = self._values + layer * self._layer_bytes
        task["scale"] = scale if softcap else scale * LOG2_E
        task["softcap"] = softcap or 0.0
        task["window"] = window or 0
        task["next_tile"] = task["next_thread"] = 0
        _write_rows(self._address)
        _attend(self._address, min(self._threads, len(self._tiles)))
        return out.to(query.dtype)

    def _set_strides(
        self, head_dim: int, query: tuple[int, ...], key: tuple[int, ...], value: tuple[int, ...]
    ) -> None:
        """Note how the operands lie in memory, which is the same in every layer of most models."""
        self._strides = (head_dim, query, key, value)
        self._task["head_dim"] = head_dim
        for name, strides in (("query", query), ("key", key), ("value", value)):
            self._task[f"{name}_head_stride"], self._task[f"{name}_row_stride"] = strides[:2]


def _dense(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    tensor = tensor.to(dtype)
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def _visible(batch: RaggedBatch) -> tuple[NDArray[np.void], NDArray[np.int64]]:
    """A ROW for every row of the batch, and the slots of ancestors that they point into."""
    rows = np.zeros(batch.num_rows, dtype=kernels.ROW)
    ancestors: list[int] = []
    for placed in batch.segments:
        segment, row = placed.segment, placed.row
        run = len(segment.run)
        rows["prefix"][row : row + run] = np.arange(segment.start + 1, segment.start + run + 1)
        rows["prefix"][row + run : row + segment.num_rows] = segment.root_position + 1
        paths: list[list[int]] = []
        for node, parent in enumerate(segment.tree_parents):
            paths.append([*(paths[parent] if parent >= 0 else []), segment.root_position + 1 + node])
            rows["first_ancestor"][row + run + node] = len(ancestors)
            rows["num_ancestors"][row + run + node] = len(paths[-1])
            ancestors += paths[-1]
    return rows, np.array(ancestors, dtype=np.int64)


def _tiles(batch: RaggedBatch, rows: NDArray[np.void], kv_heads: int, most_rows: int) -> NDArray[np.void]:
    """Every row of every segment in some tile for each key head, the longest work first."""
    made: list[tuple[int, int, int, int, int]] = []
    first_block = 0
    for placed in batch.segments:
        for row, count in _even_parts(placed, most_rows):
            last = row + count - 1
            keys = int(rows["prefix"][last])
            if rows["num_ancestors"][last]:
                # Some slot of the tree: its last node's is behind all others.
                keys = placed.segment.root_position + 1 + (last - placed.row - len(placed.segment.run)) + 1
            made += [(row, count, head, first_block, keys) for head in range(kv_heads)]
        first_block += len(placed.blocks)
    made.sort(key=lambda tile: -tile[1] * tile[4])
    return np.array(made, dtype=kernels.TILE)


def _even_parts(placed: PlacedSegment, most: int) -> list[tuple[int, int]]:
    """(first row, rows) of the segment's parts, at most `most` rows each and about alike."""
    count = placed.segment.num_rows
    parts = -(-count // most)
    edges = [placed.row + count * part // parts for part in range(parts + 1)]
    return [(left, right - left) for left, right in pairwise(edges)]
