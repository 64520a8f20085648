"""What the kernels of attention are given: their task, its tiles and rows, and each tile's scratch."""

from __future__ import annotations

import numpy as np
from numba import from_dtype, njit, types

from paceline.engine.cpu.kernels.vectors import offset, pointer_to

# Addresses and counts of one layer's attention. Strides are in elements, their last dimension is dense.
TASK = np.dtype(
    [
        (name, np.int64)
        for name in (
            # Counters that the threads share: the next tile to compute, threads that have begun, and the
            # next share of rows to write.
            "next_tile",
            "next_thread",
            "next_share",
            "tiles",
            "num_tiles",
            "rows",
            "num_rows",
            "ancestors",
            "hidden",
            "blocks",
            "slots",
            "query",
            "query_head_stride",
            "query_row_stride",
            "key",
            "key_head_stride",
            "key_row_stride",
            "value",
            "value_head_stride",
            "value_row_stride",
            # [rows, heads, head_dim], dense; float32 where it is `wide`, for heads of whole vectors.
            "out",
            "wide",
            # One layer's [kv_heads, blocks, pool_dim, block] and [kv_heads, blocks, block, pool_dim]. Where
            # they are `paired`, for the matrix unit, [kv_heads, blocks, pool_dim / 2, block, 2] and
            # [kv_heads, blocks, block / 2, pool_dim, 2].
            "paired",
            "keys",
            "values",
            "num_blocks",
            "block_size",
            "kv_heads",
            "group_heads",
            # Of queries, keys and values, and in the pool: filled up with zeros to a multiple of LANES.
            "head_dim",
            "pool_dim",
            "element",
            # Positions that a row sees up to its own, and between whose multiples it sees; 0 for all.
            "window",
            "chunk",
            # Float32 of every head, 0 for none: a score that takes part in each row's weights and has no
            # value, and [heads, bias_stride] what is added to the scores of keys by their position.
            "sinks",
            "bias",
            "bias_stride",
            # Float32 scratch of each thread, and of one row's scores in it.
            "scratch",
            "scratch_floats",
            "score_floats",
            # Tile configurations by rows: `engine.tiles`.
            "configs",
        )
    ]
    # Base-2 scale of the scores; `softcap` 0 for none.
    + [("scale", np.float64), ("softcap", np.float64)]
)
# Rows of one session that one thread computes for one key head.
TILE = np.dtype([(name, np.int64) for name in ("row", "num_rows", "kv_head", "first_block", "num_keys")])
# What a row sees: keys 0..prefix-1 but for the ranges hidden[first:first + count], then the slots
# ancestors[first:first + count] of its session.
ROW = np.dtype(
    [(name, np.int64) for name in ("prefix", "first_ancestor", "num_ancestors", "first_hidden", "num_hidden")]
)

# Where the counters are in a TASK, in bytes.
NEXT_TILE, NEXT_THREAD, NEXT_SHARE = (
    offset(TASK, name) for name in ("next_tile", "next_thread", "next_share")
)
task_at, tiles_at, rows_at = (pointer_to(from_dtype(kind)) for kind in (TASK, TILE, ROW))
floats_at, integers_at, words_at, shorts_at = (
    pointer_to(kind) for kind in (types.float32, types.int64, types.int32, types.int16)
)


# Scratch of a tile with n = num_rows * group_heads: queries and results [n, pool_dim], sums [n], scores
# [n, score_floats], and where keys are paired the values of DEPTH keys.
@njit(inline="always")
def results_at(task, tile, scratch):
    """Where a tile's results begin."""
    return scratch + 4 * tile.num_rows * task.group_heads * task.pool_dim


@njit(inline="always")
def sums_at(task, tile, scratch):
    """Where the sums of its weights begin."""
    return scratch + 8 * tile.num_rows * task.group_heads * task.pool_dim


@njit(inline="always")
def scores_at(task, tile, scratch):
    """Where its scores, later its weights, begin."""
    return sums_at(task, tile, scratch) + 4 * tile.num_rows * task.group_heads


@njit(inline="always")
def first_key(task, row):
    """The first position that a row sees."""
    length = row.prefix + row.num_ancestors
    if task.chunk > 0:
        return (length - 1) // task.chunk * task.chunk
    return max(0, length - task.window) if task.window > 0 else 0
