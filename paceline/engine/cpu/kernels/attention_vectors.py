"""Attention's products on vectors: pools of keys by column and values by row, of any kind of element."""

from __future__ import annotations

import numpy as np
from numba import carray

from paceline.engine.cpu.kernels import operations
from paceline.engine.cpu.kernels.attention_task import (
    first_key,
    floats_at,
    integers_at,
    results_at,
    scores_at,
)
from paceline.engine.cpu.kernels.vectors import (
    FLOAT32,
    LANES,
    element_bytes,
    load_element,
    part,
    store_element,
)

# Keys that a tile's last product is filled up to a multiple of.
KEYS = 64


@part
def tile_scores(task, tile, blocks, first_chunk, scratch):
    """Scale the tile's queries, clear its results, multiply with all keys that any of its rows may see."""
    element, size, dim, group = task.element, element_bytes(task.element), task.pool_dim, task.group_heads
    n = tile.num_rows * group
    floats = carray(floats_at(scratch), 1 << 30)
    scale = np.float32(task.scale)
    for row in range(tile.num_rows):
        for head in range(group):
            query = (tile.kv_head * group + head) * task.query_head_stride
            query = task.query + size * (query + (tile.row + row) * task.query_row_stride)
            place = (row * group + head) * dim
            floats[n * dim + place : n * dim + place + dim] = 0.0
            whole = task.head_dim // LANES * LANES
            operations.scale(element, whole, query, scale, scratch + 4 * place)
            for d in range(whole, dim):
                known = d < task.head_dim
                floats[place + d] = (
                    load_element(element, query + size * d) * scale if known else np.float32(0.0)
                )
    scores = scores_at(task, tile, scratch)
    chunks = (tile.num_keys + task.block_size - 1) // task.block_size
    table = carray(integers_at(blocks), chunks)
    for chunk in range(first_chunk, chunks):
        page = (tile.kv_head * task.num_blocks + table[chunk]) * task.block_size * dim
        into = scores + 4 * chunk * task.block_size
        # Of the last block only what is needed.
        keys = min(task.block_size, (tile.num_keys - chunk * task.block_size + KEYS - 1) // KEYS * KEYS)
        for place in range(n):
            carray(floats_at(into + 4 * place * task.score_floats), keys)[:] = 0.0
        operations.multiply(
            FLOAT32,
            element,
            n,
            keys,
            scratch,
            dim,
            task.keys + size * page,
            task.block_size,
            into,
            task.score_floats,
            dim,
        )


@part
def tile_values(task, tile, rows, blocks, first_chunk, scratch):
    """Add up the values by weight."""
    element, size, dim, group = task.element, element_bytes(task.element), task.pool_dim, task.group_heads
    results = results_at(task, tile, scratch)
    scores = scores_at(task, tile, scratch)
    chunks = (tile.num_keys + task.block_size - 1) // task.block_size
    table = carray(integers_at(blocks), chunks)
    for chunk in range(first_chunk, chunks):
        page = (tile.kv_head * task.num_blocks + table[chunk]) * task.block_size * dim
        start = chunk * task.block_size
        # Keys of this chunk that all rows of the tile see are read once for all of them.
        shared = 0
        if task.window == 0 and task.chunk == 0:
            shared = task.block_size
            for number in range(tile.num_rows):
                shared = min(shared, max(0, rows[tile.row + number].prefix - start))
        if shared > 0:
            operations.multiply(
                FLOAT32,
                element,
                tile.num_rows * group,
                dim,
                scores + 4 * start,
                task.score_floats,
                task.values + size * page,
                dim,
                results,
                dim,
                shared,
            )
        for number in range(tile.num_rows):
            row = rows[tile.row + number]
            first = max(shared, min(first_key(task, row), row.prefix) - start)
            last = min(row.prefix - start, task.block_size)
            if first < last:
                operations.multiply(
                    FLOAT32,
                    element,
                    group,
                    dim,
                    scores + 4 * (number * group * task.score_floats + start + first),
                    task.score_floats,
                    task.values + size * (page + first * dim),
                    dim,
                    results + 4 * number * group * dim,
                    dim,
                    last - first,
                )
    for number in range(tile.num_rows):
        row = rows[tile.row + number]
        ancestors = carray(integers_at(task.ancestors), row.first_ancestor + row.num_ancestors)
        skipped = max(0, first_key(task, row) - row.prefix)
        for depth in range(skipped, row.num_ancestors):
            slot = ancestors[row.first_ancestor + depth]
            page = (tile.kv_head * task.num_blocks + table[slot // task.block_size]) * task.block_size * dim
            operations.multiply(
                FLOAT32,
                element,
                group,
                dim,
                scores + 4 * (number * group * task.score_floats + row.prefix + depth),
                task.score_floats,
                task.values + size * (page + slot % task.block_size * dim),
                dim,
                results + 4 * number * group * dim,
                dim,
                1,
            )


@part
def write(task, head, row, block, place, count):
    """New keys and values of one head and so many rows, into neighbouring slots of a block."""
    element, dim, size = task.element, task.pool_dim, element_bytes(task.element)
    page = (head * task.num_blocks + block) * task.block_size * dim
    for d in range(task.head_dim):
        key = task.key + size * (head * task.key_head_stride + row * task.key_row_stride + d)
        into = task.keys + size * (page + d * task.block_size + place)
        for number in range(count):
            from_row = key + size * number * task.key_row_stride
            store_element(element, into + size * number, load_element(element, from_row))
    for number in range(count):
        value = task.value + size * (head * task.value_head_stride + (row + number) * task.value_row_stride)
        into = task.values + size * (page + (place + number) * dim)
        for d in range(task.head_dim):
            store_element(element, into + size * d, load_element(element, value + size * d))
