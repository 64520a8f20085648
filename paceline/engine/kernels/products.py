"""The CPU's matrix products: rows times a weight that was laid out once, rounded to the weights' type.

A row's bits are its own: every output is one chain of sums over the inputs in order, whatever rows stand
beside it and however blocks of outputs are shared among threads. bfloat16 goes through the processor's
matrix unit where there is one (`amx`), everything else through `operations.multiply`.
"""

from __future__ import annotations

import numpy as np
from numba import carray, from_dtype, njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from paceline.engine.kernels import amx, operations, vectors
from paceline.engine.kernels.amx import ROWS, TILE_BYTES, TILE_LINE
from paceline.engine.kernels.vectors import (
    ADDRESS,
    LANES,
    element_bytes,
    fetch_add,
    i64,
    kernel,
    load_element,
    on_stack,
    part,
    pointer_to,
    store_element,
)

# Outputs of one block by vectors.
VECTOR_COLUMNS = 64

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
_sums_place = on_stack(4 * ROWS * VECTOR_COLUMNS)


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
    amx.multiply_16(x, line, weight, TILE_LINE, TILE_BYTES, 2 * TILE_BYTES, depth, sums, 4 * amx.COLUMNS)


@njit(inline="always")
def _packed_32(x, line, weight, depth, sums):
    amx.multiply_32(x, line, weight, TILE_LINE, TILE_BYTES, 2 * TILE_BYTES, depth, sums, 4 * amx.COLUMNS)


@part
def _by_tiles(address, task):
    sums, before = _sums_place(), amx.config_place()
    # torch's own kernels may count on how they configured this thread's tiles.
    amx.save_config(before)
    line, depth = 2 * task.inputs, task.inputs // amx.DEPTH
    left = task.rows % ROWS
    whole = task.rows - left
    while True:
        block = fetch_add(address, 1)
        column = block * amx.COLUMNS
        if column >= task.outputs:
            break
        weight = task.weight + block * depth * 2 * TILE_BYTES
        if whole:
            amx.load_config(task.configs)
        for row in range(0, whole, ROWS):
            _packed_32(task.x + row * line, line, weight, depth, sums)
            _store_block(task, sums, amx.COLUMNS, column, row, ROWS)
        if left:
            amx.load_config(task.configs + amx.CONFIG_BYTES)
            if left > LANES:
                _packed_32(task.x + whole * line, line, weight, depth, sums)
            else:
                _packed_16(task.x + whole * line, line, weight, depth, sums)
            _store_block(task, sums, amx.COLUMNS, column, whole, left)
    amx.load_config(before)


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
