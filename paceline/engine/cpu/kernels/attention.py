"""The CPU's attention: paged keys and values, ragged rows, draft trees.

A row's result is its own to the bit. Every score is one chain of multiply-adds over the head dimension;
every output element is one such chain over the keys that the row sees, in order of position; on the matrix
unit both are chains of what it adds up at once, 32 numbers or keys; weights are summed in 16 lanes by
position. None of these orders depends on which rows are computed beside it, on how they are shared among
threads, or on the slot that a draft node's key waits in: a row's ancestors are put in order of position
before anything is summed.

The products are those of `attention_vectors`, or where the pool is in pairs of `attention_pairs`.
"""

from __future__ import annotations

import math

import numpy as np
from numba import carray

from paceline.engine.cpu.kernels import amx, attention_pairs, attention_vectors, operations
from paceline.engine.cpu.kernels.attention_task import (
    NEXT_SHARE,
    NEXT_THREAD,
    NEXT_TILE,
    first_key,
    floats_at,
    integers_at,
    results_at,
    rows_at,
    scores_at,
    sums_at,
    task_at,
    tiles_at,
)
from paceline.engine.cpu.kernels.vectors import LANES, element_bytes, fetch_add, kernel, part, store_element

# Rows of which one thread writes a head at a time.
SHARE = 64
_LOG2_E = np.float32(math.log2(math.e))


@part
def _row_weights(task, row, head, start, scores):
    """Turn one row's scores by slot, from `start` on, into weights by position; returns their sum.

    For paired values they are bfloat16, from the same place on.
    """
    floats = carray(floats_at(scores), task.score_floats)
    ancestors = carray(integers_at(task.ancestors), row.first_ancestor + row.num_ancestors)
    # An ancestor's slot is never before its position, so none is overwritten before it is read.
    for depth in range(row.num_ancestors):
        floats[row.prefix + depth] = floats[ancestors[row.first_ancestor + depth]]
    length = row.prefix + row.num_ancestors
    # Queries in pairs have not been scaled.
    factor = np.float32(task.scale) if task.paired else np.float32(1.0)
    if task.softcap > 0:
        cap = np.float32(task.softcap)
        for key in range(start, length):
            floats[key] = np.float32(math.tanh(floats[key] * factor / cap)) * (cap * _LOG2_E)
        factor = np.float32(1.0)
    if task.bias != 0:
        # In base 2, and not to be scaled again.
        unscaled = _LOG2_E / factor
        bias = carray(floats_at(task.bias + 4 * head * task.bias_stride), length)
        for key in range(start, length):
            floats[key] += bias[key] * unscaled
    floats[start : first_key(task, row)] = -np.inf
    hidden = carray(integers_at(task.hidden), 2 * (row.first_hidden + row.num_hidden))
    for number in range(row.first_hidden, row.first_hidden + row.num_hidden):
        floats[hidden[2 * number] : hidden[2 * number + 1]] = -np.inf
    end = start + (length - start + LANES - 1) // LANES * LANES
    floats[length:end] = -np.inf
    here = scores + 4 * start
    highest = operations.highest(here, end - start)
    if task.sinks == 0:
        return operations.soften(here, end - start, highest, factor, task.paired)
    sink = carray(floats_at(task.sinks), head + 1)[head] * (_LOG2_E / factor)
    highest = max(highest, sink)
    total = operations.soften(here, end - start, highest, factor, task.paired)
    return total + np.float32(2.0 ** ((sink - highest) * factor))


@part
def _write_results(task, tile, scratch):
    """Divide the tile's results by their weights' sums and write them."""
    element, size, dim, group = task.element, element_bytes(task.element), task.pool_dim, task.group_heads
    results = results_at(task, tile, scratch)
    sums = carray(floats_at(sums_at(task, tile, scratch)), tile.num_rows * group)
    floats = carray(floats_at(results), tile.num_rows * group * dim)
    for number in range(tile.num_rows):
        heads = task.kv_heads * group
        for head in range(group):
            place = number * group + head
            out = ((tile.row + number) * heads + tile.kv_head * group + head) * task.head_dim
            whole = task.head_dim // LANES * LANES
            into = task.out + (4 if task.wide else size) * out
            operations.divide(element, whole, results + 4 * place * dim, sums[place], into, task.wide)
            for d in range(whole, task.head_dim):
                store_element(element, task.out + size * (out + d), floats[place * dim + d] / sums[place])


@kernel
def write_rows(address):
    """One thread's share of a layer's new keys and values, into their slots. `address` is that of a TASK."""
    task = carray(task_at(address), 1)[0]
    slots = carray(integers_at(task.slots), task.num_rows)
    while True:
        # Heads are shared out, not neighbouring rows, whose keys lie in the same cache lines.
        share = fetch_add(address + NEXT_SHARE, 1)
        head, row = share % task.kv_heads, share // task.kv_heads * SHARE
        if row >= task.num_rows:
            break
        last = min(row + SHARE, task.num_rows)
        while row < last:
            block, place = slots[row] // task.block_size, slots[row] % task.block_size
            count = 1
            while (
                row + count < last
                and place + count < task.block_size
                and slots[row + count] == slots[row] + count
            ):
                count += 1
            if task.paired:
                attention_pairs.write(task, head, row, block, place, count)
            else:
                attention_vectors.write(task, head, row, block, place, count)
            row += count


@kernel
def attend(address):
    """One thread's share of a layer's attention: tiles until none is left. `address` is that of a TASK."""
    task = carray(task_at(address), 1)[0]
    scratch = task.scratch + 4 * task.scratch_floats * fetch_add(address + NEXT_THREAD, 1)
    tiles = carray(tiles_at(task.tiles), task.num_tiles)
    rows = carray(rows_at(task.rows), task.num_rows)
    before = amx.config_place()
    if task.paired:
        amx.save_config(before)
    while True:
        number = fetch_add(address + NEXT_TILE, 1)
        if number >= task.num_tiles:
            break
        tile = tiles[number]
        blocks = task.blocks + 8 * tile.first_block
        lowest = tile.num_keys
        for row in range(tile.row, tile.row + tile.num_rows):
            lowest = min(lowest, first_key(task, rows[row]))
        first_chunk = lowest // task.block_size
        if task.paired:
            attention_pairs.tile_scores(task, tile, blocks, first_chunk, scratch)
        else:
            attention_vectors.tile_scores(task, tile, blocks, first_chunk, scratch)
        sums = sums_at(task, tile, scratch)
        for row in range(tile.num_rows):
            for head in range(task.group_heads):
                place = row * task.group_heads + head
                scores = scores_at(task, tile, scratch) + 4 * place * task.score_floats
                query_head = tile.kv_head * task.group_heads + head
                start = first_chunk * task.block_size
                total = _row_weights(task, rows[tile.row + row], query_head, start, scores)
                carray(floats_at(sums), 1 << 30)[place] = total
        if task.paired:
            attention_pairs.tile_values(task, tile, rows, blocks, first_chunk, scratch)
        else:
            attention_vectors.tile_values(task, tile, rows, blocks, first_chunk, scratch)
        _write_results(task, tile, scratch)
    if task.paired:
        amx.load_config(before)
