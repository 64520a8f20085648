"""The CPU's attention: paged keys and values, ragged rows, draft trees.

A row's result is its own to the bit. Every score is one chain of fused multiply-adds over the head
dimension; every output element is one such chain over the keys that the row sees, in order of position;
weights are summed in 16 lanes by position. None of these orders depends on which rows are computed beside
it, on how they are shared among threads, or on the slot that a draft node's key waits in: a row's ancestors
are put in order of position before anything is summed.
"""

from __future__ import annotations

import math
from itertools import product

import llvmlite.binding as llvm
import numpy as np
from llvmlite import ir
from numba import carray, from_dtype, njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from paceline.engine.kernels import vectors
from paceline.engine.kernels.vectors import (
    ADDRESS,
    F32,
    KINDS,
    LANES,
    VECTOR,
    element_bytes,
    fetch_add,
    i64,
    kernel,
    load_element,
    part,
    pointer_to,
    store_element,
)

# Addresses and counts of one layer's attention. Strides are in elements, their last dimension is dense.
TASK = np.dtype(
    [
        (name, np.int64)
        for name in (
            # Counters that the threads share: the next tile to compute, and threads that have begun.
            "next_tile",
            "next_thread",
            "tiles",
            "num_tiles",
            "rows",
            "num_rows",
            "ancestors",
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
            # One layer's [kv_heads, blocks, pool_dim, block] and [kv_heads, blocks, block, pool_dim].
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
        )
    ]
    # Base-2 scale of the scores; `softcap` 0 for none.
    + [("scale", np.float64), ("softcap", np.float64)]
)
# Rows of one session that one thread computes for one key head.
TILE = np.dtype([(name, np.int64) for name in ("row", "num_rows", "kv_head", "first_block", "num_keys")])
# What a row sees: keys 0..prefix-1, then the slots ancestors[first:first + count] of its session.
ROW = np.dtype([(name, np.int64) for name in ("prefix", "first_ancestor", "num_ancestors")])

_LOG2_E = np.float32(math.log2(math.e))
# Rows and numbers of each whose sums `_accumulate` keeps in registers: 24 of 16 numbers with AVX-512.
_SUMS = 24 * LANES if llvm.get_host_cpu_features().get("avx512f") else 6 * LANES
_VARIANTS = [
    (rows, width)
    for rows in (6, 3, 1)
    for width in (128, 64, LANES)
    if width == LANES or rows * width <= _SUMS
]
_WIDEST_OF_6, _WIDEST_OF_3, _WIDEST_OF_1 = (
    max(width for some, width in _VARIANTS if some == rows) for rows in (6, 3, 1)
)


@intrinsic
def _accumulate(
    context, element, rows, width, weights, weight_stride, matrix, matrix_stride, out, out_stride, n
):
    """out[r, :width] += sum over i < n of weights[r, i] * matrix[i, :width], i ascending, for r < rows.

    weights and out are float32, matrix holds elements. `rows` and `width` are one of _VARIANTS.
    """

    def generate(context, builder, signature, arguments):
        chosen, operands = arguments[:3], arguments[3:]
        for kind, (rows, width) in product(KINDS, _VARIANTS):
            variant = (kind, rows, width)
            wanted = ir.Constant(ir.IntType(1), 1)
            for value, constant in zip(chosen, variant, strict=True):
                same = builder.icmp_signed("==", value, i64(constant))
                wanted = builder.and_(wanted, same)
            with builder.if_then(wanted):
                _emit_products(builder, *variant, *operands)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 3, *[ADDRESS] * 7), generate


def _emit_products(
    builder: ir.IRBuilder,
    kind: int,
    rows: int,
    width: int,
    weights: ir.Value,
    weight_stride: ir.Value,
    matrix: ir.Value,
    matrix_stride: ir.Value,
    out: ir.Value,
    out_stride: ir.Value,
    n: ir.Value,
) -> None:
    """One variant of `_accumulate`, its sums in registers."""
    starts = [i64(start) for start in range(0, width, LANES)]
    places = {}
    for row, (vector, start) in product(range(rows), enumerate(starts)):
        index = builder.add(builder.mul(out_stride, i64(row)), start)
        place = cgutils.alloca_once(builder, VECTOR)
        builder.store(vectors.load(builder, out, index), place)
        places[row, vector] = place, index
    with cgutils.for_range(builder, n) as loop:
        line = builder.mul(loop.index, matrix_stride)
        columns = [vectors.load(builder, matrix, builder.add(line, start), kind) for start in starts]
        for row in range(rows):
            index = builder.add(builder.mul(weight_stride, i64(row)), loop.index)
            weight = vectors.splat(builder, builder.load(vectors.at(builder, weights, index, F32), align=4))
            for number, column in enumerate(columns):
                place, _ = places[row, number]
                builder.store(vectors.call(builder, "fma", weight, column, builder.load(place)), place)
    for place, index in places.values():
        vectors.store(builder, builder.load(place), out, index)


@intrinsic
def _highest(context, scores, count):
    """The highest of `count` float32 scores, a multiple of LANES."""

    def generate(context, builder, signature, arguments):
        scores, count = arguments
        place = cgutils.alloca_once(builder, VECTOR)
        builder.store(vectors.constant(float("-inf")), place)
        with cgutils.for_range(builder, builder.udiv(count, i64(LANES))) as loop:
            part = vectors.load(builder, scores, builder.mul(loop.index, i64(LANES)))
            builder.store(vectors.call(builder, "maxnum", builder.load(place), part), place)
        return vectors.fold(builder, builder.load(place), "maxnum")

    return types.float32(ADDRESS, types.int64), generate


@intrinsic
def _soften(context, scores, count, highest):
    """Replace scores by 2**(score - highest); returns their sum. A score of -inf weighs exactly nothing."""

    def generate(context, builder, signature, arguments):
        scores, count, highest = arguments
        place = cgutils.alloca_once(builder, VECTOR)
        builder.store(vectors.constant(0.0), place)
        top = vectors.splat(builder, highest)
        with cgutils.for_range(builder, builder.udiv(count, i64(LANES))) as loop:
            index = builder.mul(loop.index, i64(LANES))
            x = builder.fsub(vectors.load(builder, scores, index), top)
            weight = vectors.exp2(builder, x)
            vectors.store(builder, weight, scores, index)
            builder.store(builder.fadd(builder.load(place), weight), place)
        return vectors.fold(builder, builder.load(place), "fadd")

    return types.float32(ADDRESS, types.int64, types.float32), generate


@intrinsic
def _scale(context, element, count, numbers, factor, out):
    """Elements times a factor, as float32; `count` is a multiple of LANES."""

    def generate(context, builder, signature, arguments):
        element, count, numbers, factor, out = arguments
        factors = vectors.splat(builder, factor)

        def emit(kind):
            with cgutils.for_range(builder, builder.udiv(count, i64(LANES))) as loop:
                place = builder.mul(loop.index, i64(LANES))
                x = builder.fmul(vectors.load(builder, numbers, place, kind), factors)
                vectors.store(builder, x, out, place)

        vectors.each_kind(builder, element, emit)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, ADDRESS, types.float32, ADDRESS), generate


@intrinsic
def _divide(context, element, count, numbers, divisor, out):
    """float32 over a divisor, as elements; `count` is a multiple of LANES."""

    def generate(context, builder, signature, arguments):
        element, count, numbers, divisor, out = arguments
        divisors = vectors.splat(builder, divisor)

        def emit(kind):
            with cgutils.for_range(builder, builder.udiv(count, i64(LANES))) as loop:
                place = builder.mul(loop.index, i64(LANES))
                x = builder.fdiv(vectors.load(builder, numbers, place), divisors)
                vectors.store(builder, x, out, place, kind)

        vectors.each_kind(builder, element, emit)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, ADDRESS, types.float32, ADDRESS), generate


_TASK, _TILE, _ROW = (from_dtype(kind) for kind in (TASK, TILE, ROW))
_task, _tiles, _rows, _floats, _integers = (
    pointer_to(kind) for kind in (_TASK, _TILE, _ROW, types.float32, types.int64)
)


@part
def _multiply(element, rows, width, weights, weight_stride, matrix, matrix_stride, out, out_stride, n):
    """`_accumulate` for any number of rows and any width that is a multiple of LANES."""
    row = 0
    while row < rows:
        taken = 6 if rows - row >= 6 else 3 if rows - row >= 3 else 1
        widest = _WIDEST_OF_6 if taken == 6 else _WIDEST_OF_3 if taken == 3 else _WIDEST_OF_1
        column = 0
        while column < width:
            wide = LANES
            if width - column >= widest:
                wide = widest
            elif width - column >= 64 and widest >= 64:
                wide = 64
            _accumulate(
                element,
                taken,
                wide,
                weights + 4 * row * weight_stride,
                weight_stride,
                matrix + element_bytes(element) * column,
                matrix_stride,
                out + 4 * (row * out_stride + column),
                out_stride,
                n,
            )
            column += wide
        row += taken


# Scratch of a tile with n = num_rows * group_heads: queries and results [n, pool_dim], sums [n], and scores
# [n, score_floats].
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
            _scale(element, whole, query, scale, scratch + 4 * place)
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
        for place in range(n):
            part = carray(_floats(into + 4 * place * task.score_floats), task.block_size)
            part[:] = 0.0
        _multiply(
            element,
            n,
            task.block_size,
            scratch,
            dim,
            task.keys + size * page,
            task.block_size,
            into,
            task.score_floats,
            dim,
        )


@part
def _row_weights(task, row, start, scores):
    """Turn one row's scores by slot, from `start` on, into weights by position; returns their sum."""
    floats = carray(_floats(scores), task.score_floats)
    ancestors = carray(_integers(task.ancestors), row.first_ancestor + row.num_ancestors)
    # An ancestor's slot is never before its position, so none is overwritten before it is read.
    for depth in range(row.num_ancestors):
        floats[row.prefix + depth] = floats[ancestors[row.first_ancestor + depth]]
    length = row.prefix + row.num_ancestors
    if task.softcap > 0:
        cap = np.float32(task.softcap)
        for key in range(start, length):
            floats[key] = np.float32(math.tanh(floats[key] / cap)) * (cap * _LOG2_E)
    floats[start : _first_key(row, task.window)] = -np.inf
    end = start + (length - start + LANES - 1) // LANES * LANES
    floats[length:end] = -np.inf
    here = scores + 4 * start
    return _soften(here, end - start, _highest(here, end - start))


@part
def _tile_values(task, tile, rows, blocks, first_chunk, scratch):
    """Add up the values by weight, divide by the weights' sums and write the results."""
    element, size, dim, group = task.element, element_bytes(task.element), task.pool_dim, task.group_heads
    results = scratch + 4 * tile.num_rows * group * dim
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
            _multiply(
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
                _multiply(
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
    sums = carray(_floats(_sums_at(task, tile, scratch)), tile.num_rows * group)
    floats = carray(_floats(results), tile.num_rows * group * dim)
    for number in range(tile.num_rows):
        row = rows[tile.row + number]
        ancestors = carray(_integers(task.ancestors), row.first_ancestor + row.num_ancestors)
        skipped = max(0, _first_key(row, task.window) - row.prefix)
        for depth in range(skipped, row.num_ancestors):
            slot = ancestors[row.first_ancestor + depth]
            page = (tile.kv_head * task.num_blocks + table[slot // task.block_size]) * task.block_size * dim
            _multiply(
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
        heads = task.kv_heads * group
        for head in range(group):
            place = number * group + head
            out = ((tile.row + number) * heads + tile.kv_head * group + head) * task.head_dim
            whole = task.head_dim // LANES * LANES
            _divide(element, whole, results + 4 * place * dim, sums[place], task.out + size * out)
            for d in range(whole, task.head_dim):
                store_element(element, task.out + size * (out + d), floats[place * dim + d] / sums[place])


@kernel
def write_rows(address):
    """Put a layer's new keys and values into their slots. `address` is that of a TASK."""
    task = carray(_task(address), 1)[0]
    slots = carray(_integers(task.slots), task.num_rows)
    element, dim, size = task.element, task.pool_dim, element_bytes(task.element)
    for head in range(task.kv_heads):
        for row in range(task.num_rows):
            block, offset = slots[row] // task.block_size, slots[row] % task.block_size
            page = (head * task.num_blocks + block) * task.block_size * dim
            key = task.key + size * (head * task.key_head_stride + row * task.key_row_stride)
            value = task.value + size * (head * task.value_head_stride + row * task.value_row_stride)
            for d in range(task.head_dim):
                into = page + d * task.block_size + offset
                store_element(element, task.keys + size * into, load_element(element, key + size * d))
                into = page + offset * dim + d
                store_element(element, task.values + size * into, load_element(element, value + size * d))


@kernel
def attend(address):
    """One thread's share of a layer's attention: tiles until none is left. `address` is that of a TASK."""
    task = carray(_task(address), 1)[0]
    scratch = task.scratch + 4 * task.scratch_floats * fetch_add(address + 8, 1)
    tiles = carray(_tiles(task.tiles), task.num_tiles)
    rows = carray(_rows(task.rows), task.num_rows)
    while True:
        number = fetch_add(address, 1)
        if number >= task.num_tiles:
            break
        tile = tiles[number]
        blocks = task.blocks + 8 * tile.first_block
        lowest = tile.num_keys
        for row in range(tile.row, tile.row + tile.num_rows):
            lowest = min(lowest, _first_key(rows[row], task.window))
        first_chunk = lowest // task.block_size
        _tile_scores(task, tile, blocks, first_chunk, scratch)
        sums = _sums_at(task, tile, scratch)
        for row in range(tile.num_rows):
            for head in range(task.group_heads):
                place = row * task.group_heads + head
                scores = _scores_at(task, tile, scratch) + 4 * place * task.score_floats
                total = _row_weights(task, rows[tile.row + row], first_chunk * task.block_size, scores)
                carray(_floats(sums), 1 << 30)[place] = total
        _tile_values(task, tile, rows, blocks, first_chunk, scratch)
