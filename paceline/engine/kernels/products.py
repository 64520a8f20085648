"""The CPU's matrix products: rows times a weight that was laid out once, rounded to the weights' type.

A row's bits are its own: every output is one chain of sums over the inputs in order, whatever rows stand
beside it and however blocks of outputs are shared among threads. bfloat16 goes through the processor's
matrix unit where there is one (Intel AMX, "Intel 64 and IA-32 Architectures Software Developer's Manual",
volume 1, chapter 18): a tile is 16 rows of 64 bytes, one instruction multiplies 16 rows by 32 inputs of 16
outputs. Everything else is `operations.multiply`.
"""

from __future__ import annotations

import numpy as np
from llvmlite import ir
from numba import carray, from_dtype, njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from paceline.engine.kernels import operations, vectors
from paceline.engine.kernels.vectors import (
    ADDRESS,
    FEATURES,
    I64,
    LANES,
    element_bytes,
    fetch_add,
    i64,
    kernel,
    load_element,
    part,
    pointer_to,
    store_element,
)

# Rows of one block.
ROWS = 32
# Outputs of one block, by tiles and by vectors; inputs that one tile instruction takes.
TILE_COLUMNS, VECTOR_COLUMNS = 32, 64
DEPTH = 32
# Bytes of a tile, of its rows, and of a tile configuration.
TILE_BYTES, TILE_LINE, CONFIG_BYTES = 1024, 64, 64
# One configuration for blocks of ROWS rows and one for fewer.
CONFIGS_BYTES = 2 * CONFIG_BYTES

# `next_block` is shared by the threads. Rows are dense.
TASK = np.dtype(
    [
        (name, np.int64)
        for name in (
            "next_block",
            "rows",
            "inputs",
            "outputs",
            "element",
            # By tiles or by vectors: how `weight` is laid out, see `engine.linear`.
            "tiled",
            "x",
            "weight",
            # [outputs], or 0.
            "bias",
            "out",
            # Tile configurations for ROWS rows and for what is left over, one after the other.
            "configs",
        )
    ]
)
_TASK = from_dtype(TASK)
_task = pointer_to(_TASK)
# Instructions that a processor lacks cannot even be compiled for it.
HAS_TILES = {"+amx-tile", "+amx-bf16"} <= FEATURES
_BYTE = ir.IntType(8)
_POINTER = _BYTE.as_pointer()


def tile_config(rows: int) -> bytes:
    """What `ldtilecfg` reads, for blocks of 1 to ROWS rows: which rows of which tiles are used.

    Tiles 0 to 3 are sums (rows 0-15 in the first two), 4 and 5 the rows' inputs, 6 and 7 weights.
    """
    upper, lower = min(rows, LANES), max(rows - LANES, 0)
    heights = (upper, upper, lower, lower, upper, lower, LANES, LANES)
    widths = [TILE_LINE if height else 0 for height in heights]
    config = np.zeros(CONFIG_BYTES, dtype=np.uint8)
    config[0] = 1
    config[16:32].view(np.uint16)[:] = widths
    config[48:56] = heights
    return config.tobytes()


def _tile_instruction(builder: ir.IRBuilder, name: str, *operands: int | ir.Value) -> None:
    """An AMX instruction, or nothing where there is none; a number names a tile."""
    if not HAS_TILES:
        return
    values = [ir.Constant(_BYTE, operand) if isinstance(operand, int) else operand for operand in operands]
    signature = ir.FunctionType(ir.VoidType(), [value.type for value in values])
    builder.call(cgutils.get_or_insert_function(builder.module, signature, f"llvm.x86.{name}"), values)


def _config_instruction(name):
    @intrinsic
    def configure(context, address):
        def generate(context, builder, signature, arguments):
            _tile_instruction(builder, name, builder.inttoptr(arguments[0], _POINTER))
            return context.get_dummy_value()

        return types.void(ADDRESS), generate

    return configure


load_config, save_config = _config_instruction("ldtilecfg"), _config_instruction("sttilecfg")


def _tile_products(halves, *, add=False):
    """`halves` times 16 rows by two tiles of weights, instead of the sums or added to them."""
    # Few rows read a weight once: with a hint not to keep it near.
    load_weights = "tileloaddt164" if halves == 1 else "tileloadd64"

    @intrinsic
    def multiply(context, x, line, weight, weight_line, side_bytes, step_bytes, depth, sums, stride):
        """sums[r, :TILE_COLUMNS] = (or +=) x[r] @ weight in float32, over `depth` tiles of DEPTH inputs.

        Bytes: `line` from row to row of x, `weight_line` from pair to pair of inputs, `side_bytes` from one
        tile of outputs to the other, `step_bytes` from tile to tile of inputs; `stride` from row to row of
        sums.
        """

        def generate(context, builder, signature, arguments):
            x, line, weight, weight_line, side_bytes, step_bytes, depth, sums, stride = arguments

            def tile(name, number, address, stride):
                _tile_instruction(builder, name, number, builder.inttoptr(address, _POINTER), stride)

            def each_sum(name):
                for number in range(2 * halves):
                    half, side = divmod(number, 2)
                    at = builder.add(builder.mul(stride, i64(half * LANES)), i64(4 * side * LANES))
                    tile(name, number, builder.add(sums, at), stride)

            if add:
                each_sum("tileloadd64")
            else:
                for number in range(2 * halves):
                    _tile_instruction(builder, "tilezero", number)
            with cgutils.for_range(builder, depth) as loop:
                inputs = builder.add(x, builder.mul(loop.index, i64(TILE_LINE)))
                weights = builder.add(weight, builder.mul(loop.index, step_bytes))
                for half in range(halves):
                    rows = builder.add(inputs, builder.mul(line, i64(half * LANES)))
                    tile("tileloadd64", 4 + half, rows, line)
                    for side in range(2):
                        if half == 0:
                            at = builder.add(weights, builder.mul(side_bytes, i64(side)))
                            tile(load_weights, 6 + side, at, weight_line)
                        _tile_instruction(builder, "tdpbf16ps", 2 * half + side, 4 + half, 6 + side)
            each_sum("tilestored64")
            return context.get_dummy_value()

        return types.void(*[types.int64] * 9), generate

    return multiply


multiply_16, multiply_32 = _tile_products(1), _tile_products(2)
add_16, add_32 = _tile_products(1, add=True), _tile_products(2, add=True)


def _on_stack(length):
    """A function that gives the address of so many bytes of its caller's stack, from a cache line's start."""

    @intrinsic
    def place(context):
        def generate(context, builder, signature, arguments):
            place = cgutils.alloca_once(builder, ir.ArrayType(_BYTE, length))
            place.align = TILE_LINE
            return builder.ptrtoint(place, I64)

        return types.int64(), generate

    return place


config_place, _sums_place = _on_stack(CONFIG_BYTES), _on_stack(4 * ROWS * VECTOR_COLUMNS)


@intrinsic
def _store_sums(context, element, rows, count, sums, stride, bias, out, width):
    """Lines of `count` float32 sums, a multiple of LANES, plus a bias of elements (if not 0), as elements.

    From line to line it is `stride` sums and `width` elements.
    """

    def generate(context, builder, signature, arguments):
        element, rows, count, sums, stride, bias, out, width = arguments

        def lines(kind, biased):
            with cgutils.for_range(builder, rows) as row:
                first_sum, first_out = (builder.mul(row.index, step) for step in (stride, width))
                with vectors.each_vector(builder, count) as at:
                    total = vectors.load(builder, sums, builder.add(first_sum, at))
                    if biased:
                        total = builder.fadd(total, vectors.load(builder, bias, at, kind))
                    vectors.store(builder, total, out, builder.add(first_out, at), kind)

        def emit(kind):
            with builder.if_else(builder.icmp_signed("!=", bias, i64(0))) as (with_bias, without):
                with with_bias:
                    lines(kind, biased=True)
                with without:
                    lines(kind, biased=False)

        vectors.each_kind(builder, element, emit)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 3, ADDRESS, types.int64, *[ADDRESS] * 2, types.int64), generate


_floats = pointer_to(types.float32)


@part
def _store_block(task, sums, stride, column, row, rows):
    """Round `rows` lines of at most `stride` sums to elements: the outputs from `row` and `column` on."""
    size = element_bytes(task.element)
    columns = min(stride, task.outputs - column)
    whole = columns // LANES * LANES
    bias = task.bias + size * column if task.bias != 0 else 0
    out = task.out + size * (row * task.outputs + column)
    _store_sums(task.element, rows, whole, sums, stride, bias, out, task.outputs)
    if whole < columns:
        floats = carray(_floats(sums), rows * stride)
        for number in range(rows):
            for place in range(whole, columns):
                added = load_element(task.element, bias + size * place) if bias != 0 else np.float32(0.0)
                into = out + size * (number * task.outputs + place)
                store_element(task.element, into, floats[number * stride + place] + added)


@njit(inline="always")
def _packed_16(x, line, weight, depth, sums):
    multiply_16(x, line, weight, TILE_LINE, TILE_BYTES, 2 * TILE_BYTES, depth, sums, 4 * TILE_COLUMNS)


@njit(inline="always")
def _packed_32(x, line, weight, depth, sums):
    multiply_32(x, line, weight, TILE_LINE, TILE_BYTES, 2 * TILE_BYTES, depth, sums, 4 * TILE_COLUMNS)


@part
def _by_tiles(address, task):
    sums, before = _sums_place(), config_place()
    # torch's own kernels may count on how they configured this thread's tiles.
    save_config(before)
    line, depth = 2 * task.inputs, task.inputs // DEPTH
    left = task.rows % ROWS
    whole = task.rows - left
    while True:
        block = fetch_add(address, 1)
        column = block * TILE_COLUMNS
        if column >= task.outputs:
            break
        weight = task.weight + block * depth * 2 * TILE_BYTES
        if whole:
            load_config(task.configs)
        for row in range(0, whole, ROWS):
            _packed_32(task.x + row * line, line, weight, depth, sums)
            _store_block(task, sums, TILE_COLUMNS, column, row, ROWS)
        if left:
            load_config(task.configs + CONFIG_BYTES)
            if left > LANES:
                _packed_32(task.x + whole * line, line, weight, depth, sums)
            else:
                _packed_16(task.x + whole * line, line, weight, depth, sums)
            _store_block(task, sums, TILE_COLUMNS, column, whole, left)
    load_config(before)


@part
def _by_vectors(address, task):
    element, size = task.element, element_bytes(task.element)
    sums = _sums_place()
    floats = carray(_floats(sums), ROWS * VECTOR_COLUMNS)
    while True:
        block = fetch_add(address, 1)
        column = block * VECTOR_COLUMNS
        if column >= task.outputs:
            break
        for row in range(0, task.rows, ROWS):
            rows = min(ROWS, task.rows - row)
            floats[: rows * VECTOR_COLUMNS] = 0.0
            operations.multiply(
                element,
                element,
                rows,
                VECTOR_COLUMNS,
                task.x + size * row * task.inputs,
                task.inputs,
                task.weight + size * column * task.inputs,
                VECTOR_COLUMNS,
                sums,
                VECTOR_COLUMNS,
                task.inputs,
            )
            _store_block(task, sums, VECTOR_COLUMNS, column, row, rows)


@kernel
def multiply(address):
    """One thread's share of a matrix product, in blocks of outputs. `address` is that of a TASK."""
    task = carray(_task(address), 1)[0]
    if task.tiled:
        _by_tiles(address, task)
    else:
        _by_vectors(address, task)
