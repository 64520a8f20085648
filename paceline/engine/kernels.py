"""The CPU's attention, compiled by numba: paged keys and values, ragged rows, draft trees.

A row's result is its own to the bit. Every score is one chain of fused multiply-adds over the head
dimension; every output element is one such chain over the keys that the row sees, in order of position;
weights are summed in 16 lanes by position. None of these orders depends on which rows are computed beside
it, on how they are shared among threads, or on the slot that a draft node's key waits in: a row's ancestors
are put in order of position before anything is summed.

numba caches machine code by this file's time stamp, so all that is compiled stands in this file.
"""

from __future__ import annotations

import math
from itertools import product

import llvmlite.binding as llvm
import numpy as np
from llvmlite import ir
from numba import carray, cfunc, from_dtype, njit, types
from numba.core import cgutils
from numba.extending import intrinsic

# Elements of queries, keys, values and results.
FLOAT32, BFLOAT16, FLOAT16 = range(3)
ELEMENT_BYTES = (4, 2, 2)
# Positions per lane of a sum, and numbers in one vector of the kernels.
LANES = 16

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
_KINDS = (FLOAT32, BFLOAT16, FLOAT16)
# What `_accumulate` keeps in registers: 6 rows of 64 numbers with 32 registers of 16, of 16 otherwise.
_ROWS = (1, 3, 6)
_WIDTH = 64 if llvm.get_host_cpu_features().get("avx512f") else LANES

_F32 = ir.FloatType()
_I16, _I32, _I64 = ir.IntType(16), ir.IntType(32), ir.IntType(64)
_STORED = (_F32, _I16, ir.HalfType())
_ADDRESS = types.int64


def _vector(element: ir.Type) -> ir.VectorType:
    return ir.VectorType(element, LANES)


_VECTOR = _vector(_F32)


def _constant(number: float) -> ir.Constant:
    return ir.Constant(_VECTOR, [number] * LANES)


def _at(builder: ir.IRBuilder, address: ir.Value, index: ir.Value | int, kind: ir.Type) -> ir.Value:
    """The pointer to element `index` of `kind` behind an address."""
    index = ir.Constant(_I64, index) if isinstance(index, int) else index
    return builder.gep(builder.inttoptr(address, kind.as_pointer()), [index])


def _widened(builder: ir.IRBuilder, stored: ir.Value, kind: int) -> ir.Value:
    """What was stored as `kind`, one number or a vector, as float32."""
    vector = isinstance(stored.type, ir.VectorType)
    if kind == FLOAT32:
        return stored
    if kind == FLOAT16:
        return builder.fpext(stored, _VECTOR if vector else _F32)
    wide = _vector(_I32) if vector else _I32
    shift = ir.Constant(wide, [16] * LANES if vector else 16)
    return builder.bitcast(builder.shl(builder.zext(stored, wide), shift), _VECTOR if vector else _F32)


def _load_vector(
    builder: ir.IRBuilder, address: ir.Value, index: ir.Value | int, kind: int = FLOAT32
) -> ir.Value:
    pointer = _at(builder, address, index, _STORED[kind])
    stored = builder.load(builder.bitcast(pointer, _vector(_STORED[kind]).as_pointer()), align=2)
    return _widened(builder, stored, kind)


def _store_vector(builder: ir.IRBuilder, vector: ir.Value, address: ir.Value, index: ir.Value | int) -> None:
    pointer = builder.bitcast(_at(builder, address, index, _F32), _VECTOR.as_pointer())
    builder.store(vector, pointer, align=4)


def _splat(builder: ir.IRBuilder, number: ir.Value) -> ir.Value:
    undefined = ir.Constant(_VECTOR, ir.Undefined)
    one = builder.insert_element(undefined, number, ir.Constant(_I32, 0))
    return builder.shuffle_vector(one, undefined, ir.Constant(_vector(_I32), [0] * LANES))


def _call(builder: ir.IRBuilder, name: str, *arguments: ir.Value) -> ir.Value:
    """One of LLVM's own functions on float32, numbers or vectors."""
    kind = arguments[0].type
    suffix = f"v{LANES}f32" if kind == _VECTOR else "f32"
    signature = ir.FunctionType(kind, [kind] * len(arguments))
    return builder.call(
        cgutils.get_or_insert_function(builder.module, signature, f"llvm.{name}.{suffix}"), arguments
    )


def _fold(builder: ir.IRBuilder, vector: ir.Value, name: str) -> ir.Value:
    """The lanes of a vector taken together one by one, in order."""
    total = builder.extract_element(vector, ir.Constant(_I32, 0))
    for lane in range(1, LANES):
        number = builder.extract_element(vector, ir.Constant(_I32, lane))
        total = builder.fadd(total, number) if name == "fadd" else _call(builder, name, total, number)
    return total


@intrinsic
def _load(context, element, address):
    """The float32 value of one stored element."""

    def generate(context, builder, signature, arguments):
        element, address = arguments
        place = cgutils.alloca_once(builder, _F32)
        for kind in _KINDS:
            with builder.if_then(builder.icmp_signed("==", element, ir.Constant(_I64, kind))):
                stored = builder.load(_at(builder, address, 0, _STORED[kind]), align=2)
                builder.store(_widened(builder, stored, kind), place)
        return builder.load(place)

    return types.float32(types.int64, _ADDRESS), generate


@intrinsic
def _store(context, element, address, number):
    """Round float32 to the nearest stored element, ties to even."""

    def generate(context, builder, signature, arguments):
        element, address, number = arguments
        for kind in _KINDS:
            with builder.if_then(builder.icmp_signed("==", element, ir.Constant(_I64, kind))):
                pointer = _at(builder, address, 0, _STORED[kind])
                builder.store(_rounded(builder, number, kind), pointer, align=2)
        return context.get_dummy_value()

    return types.void(types.int64, _ADDRESS, types.float32), generate


def _rounded(builder: ir.IRBuilder, number: ir.Value, kind: int) -> ir.Value:
    if kind == FLOAT32:
        return number
    if kind == FLOAT16:
        return builder.fptrunc(number, ir.HalfType())
    bits = builder.bitcast(number, _I32)
    odd = builder.and_(builder.lshr(bits, ir.Constant(_I32, 16)), ir.Constant(_I32, 1))
    bits = builder.add(bits, builder.add(odd, ir.Constant(_I32, 0x7FFF)))
    bits = builder.trunc(builder.lshr(bits, ir.Constant(_I32, 16)), _I16)
    # Rounding must not turn a NaN into a number.
    nan = builder.fcmp_unordered("uno", number, number)
    return builder.select(nan, ir.Constant(_I16, 0x7FC0), bits)


@intrinsic
def _accumulate(
    context, element, rows, width, weights, weight_stride, matrix, matrix_stride, out, out_stride, n
):
    """out[r, :width] += sum over i < n of weights[r, i] * matrix[i, :width], i ascending, for r < rows.

    weights and out are float32, matrix holds elements. `rows` is one of _ROWS, `width` _WIDTH or LANES.
    """

    def generate(context, builder, signature, arguments):
        chosen, operands = arguments[:3], arguments[3:]
        for variant in product(_KINDS, _ROWS, sorted({_WIDTH, LANES})):
            wanted = ir.Constant(ir.IntType(1), 1)
            for value, constant in zip(chosen, variant, strict=True):
                same = builder.icmp_signed("==", value, ir.Constant(_I64, constant))
                wanted = builder.and_(wanted, same)
            with builder.if_then(wanted):
                _emit_products(builder, *variant, *operands)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 3, *[_ADDRESS] * 7), generate


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
    starts = [ir.Constant(_I64, start) for start in range(0, width, LANES)]
    places = {}
    for row, (vector, start) in product(range(rows), enumerate(starts)):
        index = builder.add(builder.mul(out_stride, ir.Constant(_I64, row)), start)
        place = cgutils.alloca_once(builder, _VECTOR)
        builder.store(_load_vector(builder, out, index), place)
        places[row, vector] = place, index
    with cgutils.for_range(builder, n) as loop:
        line = builder.mul(loop.index, matrix_stride)
        vectors = [_load_vector(builder, matrix, builder.add(line, start), kind) for start in starts]
        for row in range(rows):
            index = builder.add(builder.mul(weight_stride, ir.Constant(_I64, row)), loop.index)
            weight = _splat(builder, builder.load(_at(builder, weights, index, _F32), align=4))
            for number, vector in enumerate(vectors):
                place, _ = places[row, number]
                builder.store(_call(builder, "fma", weight, vector, builder.load(place)), place)
    for place, index in places.values():
        _store_vector(builder, builder.load(place), out, index)


@intrinsic
def _highest(context, scores, count):
    """The highest of `count` float32 scores, a multiple of LANES."""

    def generate(context, builder, signature, arguments):
        scores, count = arguments
        place = cgutils.alloca_once(builder, _VECTOR)
        builder.store(_constant(float("-inf")), place)
        with cgutils.for_range(builder, builder.udiv(count, ir.Constant(_I64, LANES))) as loop:
            part = _load_vector(builder, scores, builder.mul(loop.index, ir.Constant(_I64, LANES)))
            builder.store(_call(builder, "maxnum", builder.load(place), part), place)
        return _fold(builder, builder.load(place), "maxnum")

    return types.float32(_ADDRESS, types.int64), generate


# Of 2**x on [-0.5, 0.5], highest power first: within 2 units in the last place.
_EXP2 = (
    1.535336188319500e-4,
    1.339887440266574e-3,
    9.618437357674640e-3,
    5.550332471162809e-2,
    2.402264791363012e-1,
    6.931472028550421e-1,
    1.0,
)


@intrinsic
def _soften(context, scores, count, highest):
    """Replace scores by 2**(score - highest); returns their sum. A score of -inf weighs exactly nothing."""

    def generate(context, builder, signature, arguments):
        scores, count, highest = arguments
        place = cgutils.alloca_once(builder, _VECTOR)
        builder.store(_constant(0.0), place)
        top = _splat(builder, highest)
        with cgutils.for_range(builder, builder.udiv(count, ir.Constant(_I64, LANES))) as loop:
            index = builder.mul(loop.index, ir.Constant(_I64, LANES))
            x = builder.fsub(_load_vector(builder, scores, index), top)
            # 2**-127 has an exponent field of zero, which is zero.
            x = _call(builder, "maxnum", x, _constant(-127.0))
            whole = _call(builder, "floor", builder.fadd(x, _constant(0.5)))
            fraction = builder.fsub(x, whole)
            power = _constant(_EXP2[0])
            for coefficient in _EXP2[1:]:
                power = _call(builder, "fma", power, fraction, _constant(coefficient))
            exponent = builder.add(
                builder.fptosi(whole, _vector(_I32)), ir.Constant(_vector(_I32), [127] * LANES)
            )
            exponent = builder.shl(exponent, ir.Constant(_vector(_I32), [23] * LANES))
            weight = builder.fmul(power, builder.bitcast(exponent, _VECTOR))
            _store_vector(builder, weight, scores, index)
            builder.store(builder.fadd(builder.load(place), weight), place)
        return _fold(builder, builder.load(place), "fadd")

    return types.float32(_ADDRESS, types.int64, types.float32), generate


@intrinsic
def _fetch_add(context, address):
    """Add one to a shared int64; returns what it was."""

    def generate(context, builder, signature, arguments):
        one = ir.Constant(_I64, 1)
        return builder.atomic_rmw("add", _at(builder, arguments[0], 0, _I64), one, "monotonic")

    return types.int64(_ADDRESS), generate


_TASK, _TILE, _ROW = (from_dtype(kind) for kind in (TASK, TILE, ROW))


def _pointer_to(kind):
    """A function of numba's that makes an address a pointer to numbers or records of `kind`."""

    @intrinsic
    def pointer(context, address):
        def generate(context, builder, signature, arguments):
            return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))

        return types.CPointer(kind)(_ADDRESS), generate

    return pointer


_task, _tiles, _rows, _floats, _integers = (
    _pointer_to(kind) for kind in (_TASK, _TILE, _ROW, types.float32, types.int64)
)


@njit(cache=True)
def _multiply(element, rows, width, weights, weight_stride, matrix, matrix_stride, out, out_stride, n):
    """`_accumulate` for any number of rows and any width that is a multiple of LANES."""
    row = 0
    while row < rows:
        taken = 6 if rows - row >= 6 else 3 if rows - row >= 3 else 1
        column = 0
        while column < width:
            wide = _WIDTH if width - column >= _WIDTH else LANES
            _accumulate(
                element,
                taken,
                wide,
                weights + 4 * row * weight_stride,
                weight_stride,
                matrix + _bytes(element) * column,
                matrix_stride,
                out + 4 * (row * out_stride + column),
                out_stride,
                n,
            )
            column += wide
        row += taken


@njit(inline="always")
def _bytes(element):
    return 4 if element == FLOAT32 else 2


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


@njit(cache=True)
def _tile_scores(task, tile, blocks, first_chunk, scratch):
    """Scale the tile's queries, clear its results, multiply with all keys that any of its rows may see."""
    element, size, dim, group = task.element, _bytes(task.element), task.pool_dim, task.group_heads
    n = tile.num_rows * group
    floats = carray(_floats(scratch), 1 << 30)
    scale = np.float32(task.scale)
    for row in range(tile.num_rows):
        for head in range(group):
            query = (tile.kv_head * group + head) * task.query_head_stride
            query = task.query + size * (query + (tile.row + row) * task.query_row_stride)
            place = (row * group + head) * dim
            for d in range(dim):
                known = d < task.head_dim
                floats[place + d] = _load(element, query + size * d) * scale if known else np.float32(0.0)
                floats[n * dim + place + d] = 0.0
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


@njit(cache=True)
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


@njit(cache=True)
def _tile_values(task, tile, rows, blocks, first_chunk, scratch):
    """Add up the values by weight, divide by the weights' sums and write the results."""
    element, size, dim, group = task.element, _bytes(task.element), task.pool_dim, task.group_heads
    results = scratch + 4 * tile.num_rows * group * dim
    scores = _scores_at(task, tile, scratch)
    chunks = (tile.num_keys + task.block_size - 1) // task.block_size
    table = carray(_integers(blocks), chunks)
    for chunk in range(first_chunk, chunks):
        page = (tile.kv_head * task.num_blocks + table[chunk]) * task.block_size * dim
        start = chunk * task.block_size
        for number in range(tile.num_rows):
            row = rows[tile.row + number]
            first = max(0, min(_first_key(row, task.window), row.prefix) - start)
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
            for d in range(task.head_dim):
                _store(element, task.out + size * (out + d), floats[place * dim + d] / sums[place])


@cfunc(types.void(types.int64), cache=True)
def write_rows(address):
    """Put a layer's new keys and values into their slots. `address` is that of a TASK."""
    task = carray(_task(address), 1)[0]
    slots = carray(_integers(task.slots), task.num_rows)
    element, dim, size = task.element, task.pool_dim, _bytes(task.element)
    for head in range(task.kv_heads):
        for row in range(task.num_rows):
            block, offset = slots[row] // task.block_size, slots[row] % task.block_size
            page = (head * task.num_blocks + block) * task.block_size * dim
            key = task.key + size * (head * task.key_head_stride + row * task.key_row_stride)
            value = task.value + size * (head * task.value_head_stride + row * task.value_row_stride)
            for d in range(task.head_dim):
                into = page + d * task.block_size + offset
                _store(element, task.keys + size * into, _load(element, key + size * d))
                into = page + offset * dim + d
                _store(element, task.values + size * into, _load(element, value + size * d))


@cfunc(types.void(types.int64), cache=True)
def attend(address):
    """One thread's share of a layer's attention: tiles until none is left. `address` is that of a TASK."""
    task = carray(_task(address), 1)[0]
    scratch = task.scratch + 4 * task.scratch_floats * _fetch_add(address + 8)
    tiles = carray(_tiles(task.tiles), task.num_tiles)
    rows = carray(_rows(task.rows), task.num_rows)
    while True:
        number = _fetch_add(address)
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
