"""The CPU's attention: paged keys and values, ragged rows, draft trees.

A row's result is its own to the bit. Every score is one chain of multiply-adds over the head dimension;
every output element is one such chain over the keys that the row sees, in order of position; on the matrix
unit both are chains of what it adds up at once, 32 numbers or keys; weights are summed in 16 lanes by
position. None of these orders depends on which rows are computed beside it, on how they are shared among
threads, or on the slot that a draft node's key waits in: a row's ancestors are put in order of position
before anything is summed.
"""

from __future__ import annotations

import math

import numpy as np
from numba import carray, from_dtype, njit, types

from paceline.engine.kernels import operations, products
from paceline.engine.kernels.vectors import (
    FLOAT32,
    LANES,
    element_bytes,
    fetch_add,
    kernel,
    load_element,
    offset,
    part,
    pointer_to,
    store_element,
)

# Rows that one thread writes at a time.
SHARE = 16
# Keys that a tile's last product is filled up to a multiple of.
KEYS = 64

# Addresses and counts of one layer's attention. Strides are in elements, their last dimension is dense.
TASK = np.dtype(
    [
        (name, np.int64)
        for name in (
            # Counters that the threads share: the next tile to compute, threads that have begun, and the
            # next row to write.
            "next_tile",
            "next_thread",
            "next_row",
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
            # [rows, heads, head_dim], dense.
            "out",
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
            # Positions that a row sees up to its own; 0 for all.
            "window",
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
_NEXT_TILE, _NEXT_THREAD, _NEXT_ROW = (
    offset(TASK, name) for name in ("next_tile", "next_thread", "next_row")
)
_LOG2_E = np.float32(math.log2(math.e))
_TASK, _TILE, _ROW = (from_dtype(kind) for kind in (TASK, TILE, ROW))
_task, _tiles, _rows, _floats, _integers, _words, _shorts = (
    pointer_to(kind) for kind in (_TASK, _TILE, _ROW, types.float32, types.int64, types.int32, types.int16)
)


# Scratch of a tile with n = num_rows * group_heads: queries and results [n, pool_dim], sums [n], scores
# [n, score_floats], and where keys are paired the values of DEPTH keys.
@njit(inline="always")
def _results_at(task, tile, scratch):
    return scratch + 4 * tile.num_rows * task.group_heads * task.pool_dim


@njit(inline="always")
def _sums_at(task, tile, scratch):
    return scratch + 8 * tile.num_rows * task.group_heads * task.pool_dim


@njit(inline="always")
def _scores_at(task, tile, scratch):
    return _sums_at(task, tile, scratch) + 4 * tile.num_rows * task.group_heads


@njit(inline="always")
def _first_key(row, window):
    """The first position that a row sees."""
    if window == 0:
        return 0
    return max(0, row.prefix + row.num_ancestors - window)


@part
def _tile_scores(task, tile, blocks, first_chunk, scratch):
    """Scale the tile's queries, clear its results, multiply with all keys that any of its rows may see."""
    element, size, dim, group = task.element, element_bytes(task.element), task.pool_dim, task.group_heads
    n = tile.num_rows * group
    floats = carray(_floats(scratch), 1 << 30)
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
    scores = _scores_at(task, tile, scratch)
    chunks = (tile.num_keys + task.block_size - 1) // task.block_size
    table = carray(_integers(blocks), chunks)
    for chunk in range(first_chunk, chunks):
        page = (tile.kv_head * task.num_blocks + table[chunk]) * task.block_size * dim
        into = scores + 4 * chunk * task.block_size
        # Of the last block only what is needed.
        keys = min(task.block_size, (tile.num_keys - chunk * task.block_size + KEYS - 1) // KEYS * KEYS)
        for place in range(n):
            part = carray(_floats(into + 4 * place * task.score_floats), keys)
            part[:] = 0.0
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
def _tile_scores_of_pairs(task, tile, blocks, first_chunk, scratch):
    """`_tile_scores` on the matrix unit; neither queries nor products are scaled yet."""
    dim, group = task.pool_dim, task.group_heads
    n = tile.num_rows * group
    carray(_floats(scratch + 4 * n * dim), n * dim)[:] = 0.0
    for row in range(tile.num_rows):
        for head in range(group):
            query = (tile.kv_head * group + head) * task.query_head_stride
            query = task.query + 2 * (query + (tile.row + row) * task.query_row_stride)
            dense = carray(_shorts(scratch + 2 * (row * group + head) * dim), dim)
            dense[: task.head_dim] = carray(_shorts(query), task.head_dim)
            dense[task.head_dim :] = 0
    scores = _scores_at(task, tile, scratch)
    chunks = (tile.num_keys + task.block_size - 1) // task.block_size
    table = carray(_integers(blocks), chunks)
    line, depth, pairs = 2 * dim, dim // products.DEPTH, 4 * task.block_size
    side, step, stride = products.TILE_LINE, products.DEPTH // 2 * pairs, 4 * task.score_floats
    products.load_config(task.configs + n % products.ROWS * products.CONFIGS_BYTES + products.CONFIG_BYTES)
    for chunk in range(first_chunk, chunks):
        page = task.keys + 2 * (tile.kv_head * task.num_blocks + table[chunk]) * task.block_size * dim
        into = scores + 4 * chunk * task.block_size
        keys = min(task.block_size, tile.num_keys - chunk * task.block_size)
        for key in range(0, keys, products.TILE_COLUMNS):
            pages, sums = page + 4 * key, into + 4 * key
            if n > LANES:
                products.multiply_32(scratch, line, pages, pairs, side, step, depth, sums, stride)
            else:
                products.multiply_16(scratch, line, pages, pairs, side, step, depth, sums, stride)


@part
def _row_weights(task, row, start, scores):
    """Turn one row's scores by slot, from `start` on, into weights by position; returns their sum.

    For paired values they are bfloat16, from the same place on.
    """
    floats = carray(_floats(scores), task.score_floats)
    ancestors = carray(_integers(task.ancestors), row.first_ancestor + row.num_ancestors)
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
    floats[start : _first_key(row, task.window)] = -np.inf
    hidden = carray(_integers(task.hidden), 2 * (row.first_hidden + row.num_hidden))
    for number in range(row.first_hidden, row.first_hidden + row.num_hidden):
        floats[hidden[2 * number] : hidden[2 * number + 1]] = -np.inf
    end = start + (length - start + LANES - 1) // LANES * LANES
    floats[length:end] = -np.inf
    here = scores + 4 * start
    highest = operations.highest(here, end - start)
    return operations.soften(here, end - start, highest, factor, task.paired)


@part
def _tile_values(task, tile, rows, blocks, first_chunk, scratch):
    """Add up the values by weight."""
    element, size, dim, group = task.element, element_bytes(task.element), task.pool_dim, task.group_heads
    results = _results_at(task, tile, scratch)
    scores = _scores_at(task, tile, scratch)
    chunks = (tile.num_keys + task.block_size - 1) // task.block_size
    table = carray(_integers(blocks), chunks)
    for chunk in range(first_chunk, chunks):
        page = (tile.kv_head * task.num_blocks + table[chunk]) * task.block_size * dim
        start = chunk * task.block_size
        # Keys of this chunk that all rows of the tile see are read once for all of them.
        shared = 0
        if task.window == 0:
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
            first = max(shared, min(_first_key(row, task.window), row.prefix) - start)
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
        ancestors = carray(_integers(task.ancestors), row.first_ancestor + row.num_ancestors)
        skipped = max(0, _first_key(row, task.window) - row.prefix)
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
def _tile_values_of_pairs(task, tile, rows, blocks, first_chunk, scratch):
    """Add up the values by weight on the matrix unit."""
    dim, group, line = task.pool_dim, task.group_heads, 4 * task.score_floats
    n = tile.num_rows * group
    first = first_chunk * task.block_size
    last = first
    together = task.score_floats
    branches = False
    for number in range(tile.row, tile.row + tile.num_rows):
        row = rows[number]
        last = max(last, row.prefix + row.num_ancestors)
        together = min(together, row.prefix // products.DEPTH * products.DEPTH)
        branches = branches or row.num_ancestors > 0
    end = (last + products.DEPTH - 1) // products.DEPTH * products.DEPTH
    # Rows that see different slots at one position part where the first of them does.
    if not branches:
        together = end
    # Behind `first` scores there are half as many bytes of weights.
    scores = _scores_at(task, tile, scratch)
    weights = scores + 2 * first
    for number in range(n):
        row = rows[tile.row + number // group]
        known = (row.prefix + row.num_ancestors + LANES - 1) // LANES * LANES
        carray(_shorts(weights + line * number), end)[known:] = 0
    table = carray(_integers(blocks), (tile.num_keys + task.block_size - 1) // task.block_size)
    place = first
    while place < together:
        depth = min(together - place, task.block_size) // products.DEPTH
        page = _values_at(task, tile, table, place)
        _add_values(n, weights + 2 * place, line, page, dim, depth, _results_at(task, tile, scratch))
        place += task.block_size
    if not branches:
        return
    products.load_config(
        task.configs + group % products.ROWS * products.CONFIGS_BYTES + products.CONFIG_BYTES
    )
    for number in range(tile.num_rows):
        row = rows[tile.row + number]
        results = _results_at(task, tile, scratch) + 4 * number * group * dim
        row_weights = weights + line * number * group
        for place in range(max(first, together), row.prefix + row.num_ancestors, products.DEPTH):
            page = _values_at(task, tile, table, place)
            if place + products.DEPTH > row.prefix and row.num_ancestors > 0:
                page = _path_values(task, tile, row, table, place, scores + line * n)
            _add_values(group, row_weights + 2 * place, line, page, dim, 1, results)


@njit(inline="always")
def _values_at(task, tile, table, place):
    """Address of paired values from the key of a position on, a multiple of DEPTH."""
    block, within = table[place // task.block_size], place % task.block_size
    return task.values + 2 * task.pool_dim * (
        (tile.kv_head * task.num_blocks + block) * task.block_size + within
    )


@njit(inline="always")
def _add_values(n, weights, line, values, dim, depth, results):
    """results[r] += weights[r] @ values, for `n` rows and `depth` times DEPTH keys."""
    side = products.TILE_LINE
    for column in range(0, dim, products.TILE_COLUMNS):
        page, sums = values + 4 * column, results + 4 * column
        if n > LANES:
            products.add_32(
                weights, line, page, 4 * dim, side, 2 * products.DEPTH * dim, depth, sums, 4 * dim
            )
        else:
            products.add_16(
                weights, line, page, 4 * dim, side, 2 * products.DEPTH * dim, depth, sums, 4 * dim
            )


@part
def _path_values(task, tile, row, table, place, scratch):
    """Paired values of a row's DEPTH keys from a position on, in order of position; returns `scratch`."""
    dim = task.pool_dim
    numbers = carray(_shorts(scratch), products.DEPTH * dim)
    if place < row.prefix:
        numbers[:] = carray(_shorts(_values_at(task, tile, table, place)), products.DEPTH * dim)
    else:
        numbers[:] = 0
    ancestors = carray(_integers(task.ancestors), row.first_ancestor + row.num_ancestors)
    for depth in range(
        max(0, place - row.prefix), min(row.num_ancestors, place + products.DEPTH - row.prefix)
    ):
        slot = ancestors[row.first_ancestor + depth]
        key = row.prefix + depth - place
        pair = slot // 2 * 2
        source = carray(_shorts(_values_at(task, tile, table, pair)), 2 * dim)
        into = key // 2 * 2 * dim + key % 2
        for d in range(dim):
            numbers[into + 2 * d] = source[2 * d + slot % 2]
    return scratch


@part
def _write_results(task, tile, scratch):
    """Divide the tile's results by their weights' sums and write them."""
    element, size, dim, group = task.element, element_bytes(task.element), task.pool_dim, task.group_heads
    results = _results_at(task, tile, scratch)
    sums = carray(_floats(_sums_at(task, tile, scratch)), tile.num_rows * group)
    floats = carray(_floats(results), tile.num_rows * group * dim)
    for number in range(tile.num_rows):
        heads = task.kv_heads * group
        for head in range(group):
            place = number * group + head
            out = ((tile.row + number) * heads + tile.kv_head * group + head) * task.head_dim
            whole = task.head_dim // LANES * LANES
            operations.divide(element, whole, results + 4 * place * dim, sums[place], task.out + size * out)
            for d in range(whole, task.head_dim):
                store_element(element, task.out + size * (out + d), floats[place * dim + d] / sums[place])


@part
def _write(task, slots, first, last):
    """New keys and values of some rows, into their slots."""
    element, dim, size = task.element, task.pool_dim, element_bytes(task.element)
    for head in range(task.kv_heads):
        for row in range(first, last):
            block, place = slots[row] // task.block_size, slots[row] % task.block_size
            page = (head * task.num_blocks + block) * task.block_size * dim
            key = task.key + size * (head * task.key_head_stride + row * task.key_row_stride)
            value = task.value + size * (head * task.value_head_stride + row * task.value_row_stride)
            for d in range(task.head_dim):
                into = page + d * task.block_size + place
                store_element(element, task.keys + size * into, load_element(element, key + size * d))
                into = page + place * dim + d
                store_element(element, task.values + size * into, load_element(element, value + size * d))


@part
def _write_pairs(task, slots, first, last):
    """`_write` in pairs: neighbouring slots of one block together, in the order of their memory."""
    dim, size, block_size = task.pool_dim, task.head_dim, task.block_size
    for head in range(task.kv_heads):
        row = first
        while row < last:
            count = 1
            while (
                row + count < last
                and slots[row + count] == slots[row] + count
                and slots[row + count] % block_size != 0
            ):
                count += 1
            block, place = slots[row] // block_size, slots[row] % block_size
            page = 2 * (head * task.num_blocks + block) * block_size * dim
            keys = carray(_words(task.keys + page), block_size * dim // 2)
            values = carray(_shorts(task.values + page), block_size * dim)
            for pair in range(size // 2):
                for number in range(count):
                    at = head * task.key_head_stride + (row + number) * task.key_row_stride + 2 * pair
                    keys[pair * block_size + place + number] = carray(_words(task.key + 2 * at), 1)[0]
            for number in range(count):
                at = head * task.value_head_stride + (row + number) * task.value_row_stride
                value = carray(_shorts(task.value + 2 * at), size)
                into = (place + number) // 2 * 2 * dim + (place + number) % 2
                for d in range(size):
                    # The matrix unit also reads slots that a row does not see, times nothing: no infinities.
                    values[into + 2 * d] = value[d] if (value[d] & 0x7F80) != 0x7F80 else 0
            row += count


@kernel
def write_rows(address):
    """One thread's share of a layer's new keys and values, into their slots. `address` is that of a TASK."""
    task = carray(_task(address), 1)[0]
    slots = carray(_integers(task.slots), task.num_rows)
    while True:
        first = fetch_add(address + _NEXT_ROW, SHARE)
        if first >= task.num_rows:
            break
        last = min(first + SHARE, task.num_rows)
        if task.paired:
            _write_pairs(task, slots, first, last)
        else:
            _write(task, slots, first, last)


@kernel
def attend(address):
    """One thread's share of a layer's attention: tiles until none is left. `address` is that of a TASK."""
    task = carray(_task(address), 1)[0]
    scratch = task.scratch + 4 * task.scratch_floats * fetch_add(address + _NEXT_THREAD, 1)
    tiles = carray(_tiles(task.tiles), task.num_tiles)
    rows = carray(_rows(task.rows), task.num_rows)
    before = products.config_place()
    if task.paired:
        products.save_config(before)
    while True:
        number = fetch_add(address + _NEXT_TILE, 1)
        if number >= task.num_tiles:
            break
        tile = tiles[number]
        blocks = task.blocks + 8 * tile.first_block
        lowest = tile.num_keys
        for row in range(tile.row, tile.row + tile.num_rows):
            lowest = min(lowest, _first_key(rows[row], task.window))
        first_chunk = lowest // task.block_size
        if task.paired:
            _tile_scores_of_pairs(task, tile, blocks, first_chunk, scratch)
        else:
            _tile_scores(task, tile, blocks, first_chunk, scratch)
        sums = _sums_at(task, tile, scratch)
        for row in range(tile.num_rows):
            for head in range(task.group_heads):
                place = row * task.group_heads + head
                scores = _scores_at(task, tile, scratch) + 4 * place * task.score_floats
                total = _row_weights(task, rows[tile.row + row], first_chunk * task.block_size, scores)
                carray(_floats(sums), 1 << 30)[place] = total
        if task.paired:
            _tile_values_of_pairs(task, tile, rows, blocks, first_chunk, scratch)
        else:
            _tile_values(task, tile, rows, blocks, first_chunk, scratch)
        _write_results(task, tile, scratch)
    if task.paired:
        products.load_config(before)
