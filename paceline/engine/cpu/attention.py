"""Attention on the CPU: what `kernels.attention` needs of a batch, laid out once a forward."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from paceline.engine.attention import Rule
from paceline.engine.cpu.kernels import amx
from paceline.engine.cpu.kernels import attention as kernels
from paceline.engine.cpu.kernels.attention_task import ROW, TASK, TILE
from paceline.engine.cpu.kernels.vectors import ELEMENTS, LANES
from paceline.engine.cpu.team import Kernel
from paceline.engine.cpu.tiles import matrix_unit, tile_configs
from paceline.engine.kv import KVForm, KVLayout, KVPool
from paceline.engine.rows import PlacedSegment, RaggedBatch

# Query rows, times the heads of a group, that share one pass over a key block while it is in the cache.
TILE_QUERIES = 24
# On the matrix unit: as many as it takes at once.
PAIRS_QUERIES = amx.ROWS
# Queries that take as long as fewer of them, without the matrix unit and on it.
QUERIES_STEP, PAIRS_QUERIES_STEP = 3, LANES
# From this many tiles a thread on, it matters little that one thread has one more than another.
MANY_TILES = 4
LOG2_E = math.log2(math.e)
# Rows that one thread has written before a team of them would have begun.
FEW_ROWS = 16

write_rows, attend = Kernel(kernels.write_rows.address), Kernel(kernels.attend.address)


def kv_layout(dtype: torch.dtype, *, head_dim: int, group: int, block_size: int) -> KVLayout:
    """The layout for keys and values of heads that `group` query heads share, in a pool of `dtype`.

    `head_dim` is the model's; the pool's may be filled up.
    """
    filled = -(-head_dim // LANES) * LANES
    whole = head_dim % 2 == 0 and filled % amx.DEPTH == 0 and block_size % amx.COLUMNS == 0
    fits = whole and group <= PAIRS_QUERIES
    paired = dtype == torch.bfloat16 and fits and matrix_unit()
    return KVLayout.PAIRS if paired else KVLayout.COLUMNS


class KernelAttention:
    """The backend of CPUs. One forward at a time."""

    def __init__(self, *, heads: int) -> None:
        self._heads = heads
        self._scratch = np.empty(0, dtype=np.float32)

    def kv_form(self, dtype: torch.dtype, *, head_dim: int, kv_heads: int, block_size: int) -> KVForm:
        """See `AttentionBackend.kv_form`. Heads are filled up to whole vectors."""
        kept = dtype if dtype in ELEMENTS else torch.float32
        group = self._heads // kv_heads
        return KVForm(
            kept,
            -(-head_dim // LANES) * LANES,
            kv_layout(kept, head_dim=head_dim, group=group, block_size=block_size),
            clear_blocks=False,
        )

    def begin(self, batch: RaggedBatch, pool: KVPool) -> PagedForward:
        """Lay out the batch's tiles, and scratch for each thread."""
        group = self._heads // pool.kv_heads
        rows, ancestors, hidden = _visible(batch)
        threads = torch.get_num_threads()
        paired = pool.layout is KVLayout.PAIRS
        most, step = (PAIRS_QUERIES, PAIRS_QUERIES_STEP) if paired else (TILE_QUERIES, QUERIES_STEP)
        sizes = [placed.segment.num_rows for placed in batch.segments]
        parts = tile_counts(sizes, group, pool.kv_heads, threads=threads, most=most, step=step)
        tiles = _tiles(batch, rows, pool.kv_heads, parts)
        queries = int(tiles["num_rows"].max(initial=0)) * group
        # Whole blocks: a product fills them.
        score_floats = -(-int(tiles["num_keys"].max(initial=0)) // pool.block_size) * pool.block_size
        # Threads must not write to one cache line.
        path_floats = amx.DEPTH * pool.head_dim // 2 if paired else 0
        scratch_floats = queries * (2 * pool.head_dim + 1 + score_floats) + path_floats
        scratch_floats = -(-scratch_floats // 16) * 16 + 16
        if threads * scratch_floats > self._scratch.size:
            self._scratch = np.empty(threads * scratch_floats, dtype=np.float32)
        blocks = np.array([block for placed in batch.segments for block in placed.blocks])
        task = np.zeros((), dtype=TASK)
        arrays = {
            "tiles": tiles,
            "rows": rows,
            "ancestors": ancestors,
            "hidden": hidden,
            "blocks": blocks,
            "slots": batch.slots.numpy(),
            "scratch": self._scratch,
        }
        for name, array in arrays.items():
            task[name] = array.ctypes.data
        for name, number in (
            ("num_tiles", len(tiles)),
            ("num_rows", batch.num_rows),
            ("num_blocks", pool.num_blocks),
            ("block_size", pool.block_size),
            ("kv_heads", pool.kv_heads),
            ("group_heads", group),
            ("pool_dim", pool.head_dim),
            ("element", ELEMENTS[pool.dtype]),
            ("paired", paired),
            ("configs", tile_configs()),
            ("score_floats", score_floats),
            ("scratch_floats", scratch_floats),
        ):
            task[name] = number
        return PagedForward(
            pool,
            task,
            tuple(arrays.values()),
            heads=self._heads,
            threads=threads,
            hides=bool(len(hidden)),
        )


class PagedForward:
    """One forward's attention, layer by layer or all layers' tasks at once."""

    def __init__(
        self,
        pool: KVPool,
        task: NDArray[np.void],
        arrays: tuple[NDArray[Any], ...],
        *,
        heads: int,
        threads: int,
        hides: bool,
    ) -> None:
        """`task` points into `arrays`, which this keeps alive; `hides`: keys are hidden from some row."""
        self._pool, self._task, self._arrays = pool, task, arrays
        self._heads, self._threads = heads, threads
        self._hides = hides
        self._address = task.ctypes.data
        self._strides: tuple[object, ...] = ()
        self._keys, self._values = pool.keys.data_ptr(), pool.values.data_ptr()
        self._layer_bytes = pool.values[0].nbytes

    def layer_tasks(
        self, query: Tensor, key: Tensor, value: Tensor, out: Tensor, scale: float
    ) -> NDArray[np.void]:
        """The TASK of every layer [layers], for `kernels.write_rows` and `kernels.attend`.

        All layers read the same memory, in the pool's dtype: query [heads, rows, head_dim], key and value
        [kv_heads, rows, head_dim], dense in their last dimension; out [rows, heads * head_dim], in that dtype
        or, for heads of a multiple of LANES, rounded to it and written as float32. No window.
        """
        self._set_strides(query.shape[-1], query.stride(), key.stride(), value.stride())
        task = self._task
        for name, tensor in (("query", query), ("key", key), ("value", value), ("out", out)):
            task[name] = tensor.data_ptr()
        task["wide"] = out.dtype is torch.float32
        task["scale"] = scale * LOG2_E
        tasks = np.repeat(task, len(self._pool.keys))
        offsets = np.arange(len(tasks)) * self._layer_bytes
        tasks["keys"], tasks["values"] = self._keys + offsets, self._values + offsets
        return tasks

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, rule: Rule) -> Tensor:
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
        kept = self._set_rule(rule)
        task["next_tile"] = task["next_thread"] = task["next_share"] = 0
        write_rows(self._address, self._threads if rows > FEW_ROWS else 1)
        attend(self._address, min(self._threads, int(task["num_tiles"])))
        del kept
        return out.to(query.dtype)

    def _set_rule(self, rule: Rule) -> tuple[Tensor | None, Tensor | None]:
        """Write the layer's rule into the task, which points into the tensors returned."""
        task, reach = self._task, rule.reach
        if self._hides and (reach.window or reach.chunk or rule.bias is not None):
            raise ValueError("the layer counts positions, and keys are hidden from this batch's rows")
        task["scale"] = rule.scale if rule.softcap else rule.scale * LOG2_E
        task["softcap"] = rule.softcap or 0.0
        task["window"], task["chunk"] = reach.window or 0, reach.chunk or 0
        sinks, bias = (None if kept is None else kept.contiguous() for kept in (rule.sinks, rule.bias))
        task["sinks"] = 0 if sinks is None else sinks.data_ptr()
        task["bias"] = 0 if bias is None else bias.data_ptr()
        task["bias_stride"] = 0 if bias is None else bias.shape[-1]
        return sinks, bias

    def _set_strides(
        self, head_dim: int, query: tuple[int, ...], key: tuple[int, ...], value: tuple[int, ...]
    ) -> None:
        """Write the operands' strides into the task; most models have the same in every layer."""
        self._strides = (head_dim, query, key, value)
        self._task["head_dim"] = head_dim
        for name, strides in (("query", query), ("key", key), ("value", value)):
            self._task[f"{name}_head_stride"], self._task[f"{name}_row_stride"] = strides[:2]


def _dense(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    tensor = tensor.to(dtype)
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def _visible(batch: RaggedBatch) -> tuple[NDArray[np.void], NDArray[np.int64], NDArray[np.int64]]:
    """A ROW for every row of the batch, and what they point into: slots of ancestors, and hidden ones."""
    rows = np.zeros(batch.num_rows, dtype=ROW)
    ancestors: list[int] = []
    hidden: list[tuple[int, int]] = []
    for placed in batch.segments:
        segment, row = placed.segment, placed.row
        run = len(segment.run)
        rows["prefix"][row : row + run] = np.arange(segment.start + 1, segment.start + run + 1)
        hiding = _ranges(segment.hidden)
        rows["first_hidden"][placed.rows] = len(hidden)
        rows["num_hidden"][placed.rows] = len(hiding)
        hidden += hiding
        rows["prefix"][row + run : row + segment.num_rows] = segment.root_index + 1
        for number, path in enumerate(segment.paths()[segment.computed_nodes :], row + run):
            rows["first_ancestor"][number] = len(ancestors)
            rows["num_ancestors"][number] = len(path)
            ancestors += path
    return rows, np.array(ancestors, dtype=np.int64), np.array(hidden, dtype=np.int64)


def _ranges(ascending: Sequence[int]) -> list[tuple[int, int]]:
    """Numbers as ranges, first and last + 1."""
    made: list[tuple[int, int]] = []
    for number in ascending:
        first = made.pop()[0] if made and made[-1][1] == number else number
        made.append((first, number + 1))
    return made


def _tiles(
    batch: RaggedBatch, rows: NDArray[np.void], kv_heads: int, parts: Sequence[int]
) -> NDArray[np.void]:
    """Tiles that cover all rows for each key head, the longest first; `parts` tiles of each segment."""
    made: list[tuple[int, int, int, int, int]] = []
    first_block = 0
    for placed, count in zip(batch.segments, parts, strict=True):
        for first, num_rows in _even_parts(placed, count):
            last = first + num_rows - 1
            keys = int(rows["prefix"][last])
            if rows["num_ancestors"][last]:
                # Some slot of the tree: its last node's is behind all others.
                node = last - placed.row - len(placed.segment.run) + placed.segment.computed_nodes
                keys = placed.segment.root_index + 1 + node + 1
            made += [(first, num_rows, head, first_block, keys) for head in range(kv_heads)]
        first_block += len(placed.blocks)
    made.sort(key=lambda tile: -tile[1] * tile[4])
    return np.array(made, dtype=TILE)


def tile_counts(
    sizes: Sequence[int], group: int, kv_heads: int, *, threads: int, most: int, step: int
) -> list[int]:
    """How many tiles the rows of each segment make for a key head, of at most `most` queries or one row's.

    As few as that; where few are made in all, more of them if the threads that share them are done earlier
    then. Queries take time in steps of `step`.
    """

    def divided(more: int) -> list[int]:
        return [min(size, -(-size // max(1, most // group)) + more) for size in sizes]

    def longest(more: int) -> int:
        parts = divided(more)
        rows = max((-(-size // count) for size, count in zip(sizes, parts, strict=True)), default=0)
        queries = rows * group
        return -(-sum(parts) * kv_heads // threads) * -(-queries // step)

    if sum(divided(0)) * kv_heads >= MANY_TILES * threads:
        return divided(0)
    return divided(min(range(min(threads, max(sizes, default=0) + 1)), key=longest))


def _even_parts(placed: PlacedSegment, parts: int) -> list[tuple[int, int]]:
    """(first row, rows) of the segment's parts, about alike."""
    count = placed.segment.num_rows
    edges = [placed.row + count * part // parts for part in range(parts + 1)]
    return [(left, right - left) for left, right in pairwise(edges)]
