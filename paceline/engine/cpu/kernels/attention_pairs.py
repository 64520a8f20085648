"""Attention's products on the matrix unit: pools of bfloat16 keys and values in pairs."""

from __future__ import annotations

from numba import carray, njit

from paceline.engine.cpu.kernels import amx
from paceline.engine.cpu.kernels.attention_task import (
    floats_at,
    integers_at,
    results_at,
    scores_at,
    shorts_at,
    words_at,
)
from paceline.engine.cpu.kernels.vectors import LANES, part


@part
def tile_scores(task, tile, blocks, first_chunk, scratch):
    """`attention_vectors.tile_scores` on the matrix unit; neither queries nor products are scaled yet."""
    dim, group = task.pool_dim, task.group_heads
    n = tile.num_rows * group
    carray(floats_at(scratch + 4 * n * dim), n * dim)[:] = 0.0
    for row in range(tile.num_rows):
        for head in range(group):
            query = (tile.kv_head * group + head) * task.query_head_stride
            query = task.query + 2 * (query + (tile.row + row) * task.query_row_stride)
            dense = carray(shorts_at(scratch + 2 * (row * group + head) * dim), dim)
            dense[: task.head_dim] = carray(shorts_at(query), task.head_dim)
            dense[task.head_dim :] = 0
    scores = scores_at(task, tile, scratch)
    chunks = (tile.num_keys + task.block_size - 1) // task.block_size
    table = carray(integers_at(blocks), chunks)
    line, depth, pairs = 2 * dim, dim // amx.DEPTH, 4 * task.block_size
    side, step, stride = amx.TILE_LINE, amx.DEPTH // 2 * pairs, 4 * task.score_floats
    amx.load_config(task.configs + n % amx.ROWS * amx.CONFIGS_BYTES + amx.CONFIG_BYTES)
    for chunk in range(first_chunk, chunks):
        page = task.keys + 2 * (tile.kv_head * task.num_blocks + table[chunk]) * task.block_size * dim
        into = scores + 4 * chunk * task.block_size
        keys = min(task.block_size, tile.num_keys - chunk * task.block_size)
        for key in range(0, keys, amx.COLUMNS):
            pages, sums = page + 4 * key, into + 4 * key
            if n > LANES:
                amx.multiply_32(scratch, line, pages, pairs, side, step, depth, sums, stride)
            else:
                amx.multiply_16(scratch, line, pages, pairs, side, step, depth, sums, stride)


@part
def tile_values(task, tile, rows, blocks, first_chunk, scratch):
    """Add up the values by weight, which are bfloat16."""
    dim, group, line = task.pool_dim, task.group_heads, 4 * task.score_floats
    n = tile.num_rows * group
    first = first_chunk * task.block_size
    last = first
    together = task.score_floats
    branches = False
    for number in range(tile.row, tile.row + tile.num_rows):
        row = rows[number]
        last = max(last, row.prefix + row.num_ancestors)
        together = min(together, row.prefix // amx.DEPTH * amx.DEPTH)
        branches = branches or row.num_ancestors > 0
    end = (last + amx.DEPTH - 1) // amx.DEPTH * amx.DEPTH
    # Rows that see different slots at one position part where the first of them does.
    if not branches:
        together = end
    # Behind `first` scores there are half as many bytes of weights.
    scores = scores_at(task, tile, scratch)
    weights = scores + 2 * first
    for number in range(n):
        row = rows[tile.row + number // group]
        known = (row.prefix + row.num_ancestors + LANES - 1) // LANES * LANES
        carray(shorts_at(weights + line * number), end)[known:] = 0
    table = carray(integers_at(blocks), (tile.num_keys + task.block_size - 1) // task.block_size)
    place = first
    while place < together:
        depth = min(together - place, task.block_size) // amx.DEPTH
        page = _values_at(task, tile, table, place)
        _add_values(n, weights + 2 * place, line, page, dim, depth, results_at(task, tile, scratch))
        place += task.block_size
    if not branches:
        return
    amx.load_config(task.configs + group % amx.ROWS * amx.CONFIGS_BYTES + amx.CONFIG_BYTES)
    for number in range(tile.num_rows):
        row = rows[tile.row + number]
        results = results_at(task, tile, scratch) + 4 * number * group * dim
        row_weights = weights + line * number * group
        for place in range(max(first, together), row.prefix + row.num_ancestors, amx.DEPTH):
            page = _values_at(task, tile, table, place)
            if place + amx.DEPTH > row.prefix and row.num_ancestors > 0:
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
    side = amx.TILE_LINE
    for column in range(0, dim, amx.COLUMNS):
        page, sums = values + 4 * column, results + 4 * column
        if n > LANES:
            amx.add_32(weights, line, page, 4 * dim, side, 2 * amx.DEPTH * dim, depth, sums, 4 * dim)
        else:
            amx.add_16(weights, line, page, 4 * dim, side, 2 * amx.DEPTH * dim, depth, sums, 4 * dim)


@part
def _path_values(task, tile, row, table, place, scratch):
    """Paired values of a row's DEPTH keys from a position on, in order of position; returns `scratch`."""
    dim = task.pool_dim
    numbers = carray(shorts_at(scratch), amx.DEPTH * dim)
    if place < row.prefix:
        numbers[:] = carray(shorts_at(_values_at(task, tile, table, place)), amx.DEPTH * dim)
    else:
        numbers[:] = 0
    ancestors = carray(integers_at(task.ancestors), row.first_ancestor + row.num_ancestors)
    for depth in range(max(0, place - row.prefix), min(row.num_ancestors, place + amx.DEPTH - row.prefix)):
        slot = ancestors[row.first_ancestor + depth]
        key = row.prefix + depth - place
        pair = slot // 2 * 2
        source = carray(shorts_at(_values_at(task, tile, table, pair)), 2 * dim)
        into = key // 2 * 2 * dim + key % 2
        for d in range(dim):
            numbers[into + 2 * d] = source[2 * d + slot % 2]
    return scratch


@part
def write(task, head, row, block, place, count):
    """New keys and values of one head and so many rows, into neighbouring slots of a block."""
    dim, size, block_size = task.pool_dim, task.head_dim, task.block_size
    page = 2 * (head * task.num_blocks + block) * block_size * dim
    keys = carray(words_at(task.keys + page), block_size * dim // 2)
    values = carray(shorts_at(task.values + page), block_size * dim)
    for pair in range(size // 2):
        for number in range(count):
            at = head * task.key_head_stride + (row + number) * task.key_row_stride + 2 * pair
            keys[pair * block_size + place + number] = carray(words_at(task.key + 2 * at), 1)[0]
    for number in range(count):
        at = head * task.value_head_stride + (row + number) * task.value_row_stride
        value = carray(shorts_at(task.value + 2 * at), size)
        into = (place + number) // 2 * 2 * dim + (place + number) % 2
        for d in range(size):
            # The matrix unit also reads slots that a row does not see, times nothing: no infinities.
            values[into + 2 * d] = value[d] if (value[d] & 0x7F80) != 0x7F80 else 0
