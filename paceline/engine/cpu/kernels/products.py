"""The CPU's matrix products: rows times a weight that was laid out once, rounded to the weights' type.

A row's bits are its own: every output is one chain of sums over the inputs in order, whatever rows stand
beside it and however blocks of outputs are shared among threads. bfloat16 goes through the processor's
matrix unit where there is one (`amx`), everything else through vectors (`panels`).
"""

from __future__ import annotations

import numpy as np
from numba import carray, from_dtype, njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from paceline.engine.cpu.kernels import amx, vectors
from paceline.engine.cpu.kernels import panels as vector_panels
from paceline.engine.cpu.kernels.amx import COLUMNS, ROWS, TILE_BYTES, TILE_LINE
from paceline.engine.cpu.kernels.vectors import (
    ADDRESS,
    CACHE_LINE,
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

# `next_block` is shared by the threads. Rows are dense.
TASK = np.dtype(
    [
        (name, np.int64)
        for name in (
            "next_block",
            "rows",
            "inputs",
            "outputs",
            "threads",
            "element",
            # By tiles, of rows of elements, or by vectors, of rows of float32.
            "tiled",
            "x",
            # See `engine.linear`.
            "weight",
            # The weight of the product that comes next, or 0.
            "following",
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
_sums_place = on_stack(4 * ROWS * COLUMNS)


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
def _store_block(task, sums, column, row, rows):
    """Round `rows` lines of at most COLUMNS sums to elements: the outputs from `row` and `column` on."""
    size = element_bytes(task.element)
    columns = min(COLUMNS, task.outputs - column)
    whole = columns // LANES * LANES
    bias = task.bias + size * column if task.bias != 0 else 0
    out = task.out + size * (row * task.outputs + column)
    _store_sums(task.element, rows, whole, sums, COLUMNS, bias, out, task.outputs)
    if whole < columns:
        floats = carray(_floats(sums), rows * COLUMNS)
        for number in range(rows):
            for place in range(whole, columns):
                added = load_element(task.element, bias + size * place) if bias != 0 else np.float32(0.0)
                into = out + size * (number * task.outputs + place)
                store_element(task.element, into, floats[number * COLUMNS + place] + added)


@njit(inline="always")
def _packed_16(x, line, weight, depth, sums):
    amx.multiply_16(x, line, weight, TILE_LINE, TILE_BYTES, 2 * TILE_BYTES, depth, sums, 4 * COLUMNS)


@njit(inline="always")
def _packed_32(x, line, weight, depth, sums):
    amx.multiply_32(x, line, weight, TILE_LINE, TILE_BYTES, 2 * TILE_BYTES, depth, sums, 4 * COLUMNS)


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
        column = block * COLUMNS
        if column >= task.outputs:
            break
        weight = task.weight + block * depth * 2 * TILE_BYTES
        if whole:
            amx.load_config(task.configs)
        for row in range(0, whole, ROWS):
            _packed_32(task.x + row * line, line, weight, depth, sums)
            _store_block(task, sums, column, row, ROWS)
        if left:
            amx.load_config(task.configs + amx.CONFIG_BYTES)
            if left > LANES:
                _packed_32(task.x + whole * line, line, weight, depth, sums)
            else:
                _packed_16(task.x + whole * line, line, weight, depth, sums)
            _store_block(task, sums, column, whole, left)
    amx.load_config(before)


@part
def _by_vectors(address, task):
    size = element_bytes(task.element)
    sums, line = _sums_place(), 4 * task.inputs
    blocks = (task.outputs + COLUMNS - 1) // COLUMNS
    block_bytes = size * COLUMNS * task.inputs
    panels = (task.rows + vector_panels.ROWS - 1) // vector_panels.ROWS
    steps = task.inputs // vector_panels.STEP
    # Of what is fetched, each panel's share.
    gap = (CACHE_LINE + panels - 1) // panels
    share = gap * (block_bytes // CACHE_LINE)
    while True:
        block = fetch_add(address, 1)
        if block >= blocks:
            break
        weight = task.weight + block * block_bytes
        # What this thread is likely to read next; what it reads now where there is nothing.
        later = block + task.threads
        ahead = task.weight + later * block_bytes
        if later >= blocks:
            ahead = task.following + (later - blocks) * block_bytes if task.following != 0 else weight
        for panel in range(panels):
            row = panel * vector_panels.ROWS
            rows = min(vector_panels.ROWS, task.rows - row)
            vector_panels.multiply(
                task.element,
                rows,
                task.x + line * row,
                line,
                weight,
                steps,
                sums,
                ahead + panel * share,
                gap,
            )
            _store_block(task, sums, block * COLUMNS, row, rows)


@kernel
def multiply(address):
    """One thread's share of a matrix product, in blocks of outputs. `address` is that of a TASK."""
    task = carray(_task(address), 1)[0]
    if task.tiled:
        _by_tiles(address, task)
    else:
        _by_vectors(address, task)
