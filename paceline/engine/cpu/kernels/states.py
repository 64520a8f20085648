"""Rows' hidden states into their slots of the pool that is kept beside the KV."""

from __future__ import annotations

import numpy as np
from numba import carray, from_dtype, types
from numba.core import cgutils
from numba.extending import intrinsic

from paceline.engine.cpu.kernels import vectors
from paceline.engine.cpu.kernels.vectors import (
    ADDRESS,
    element_bytes,
    fetch_add,
    kernel,
    pointer_to,
)

# Rows that one thread takes at a time.
SHARE = 8

# `next_row` is shared by the threads. Rows are dense, `width` elements each, a multiple of LANES.
TASK = np.dtype(
    [
        (name, np.int64)
        for name in (
            "next_row",
            "num_rows",
            "element",
            "width",
            "residual",
            # What the last layer's product adds to the residual; 0 where the sum has been made.
            "added",
            # Int64 of each row, and one layer's [slots, width].
            "slots",
            "out",
        )
    ]
)
_task, _integers = pointer_to(from_dtype(TASK)), pointer_to(types.int64)


@intrinsic
def _copy(context, out, row, length):
    """Copy bytes."""

    def generate(context, builder, signature, arguments):
        out, row, length = arguments
        out, row = (builder.inttoptr(address, cgutils.voidptr_t) for address in (out, row))
        cgutils.raw_memcpy(builder, out, row, length, 1)
        return context.get_dummy_value()

    return types.void(ADDRESS, ADDRESS, types.int64), generate


@intrinsic
def _sum(context, element, width, residual, added, out):
    """out = residual + added."""

    def generate(context, builder, signature, arguments):
        element, width, residual, added, out = arguments

        def emit(kind):
            with vectors.each_vector(builder, width) as at:
                left, right = (vectors.load(builder, row, at, kind) for row in (residual, added))
                vectors.store(builder, builder.fadd(left, right), out, at, kind)

        vectors.each_kind(builder, element, emit)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, *[ADDRESS] * 3), generate


@kernel
def keep(address):
    """One thread's share of a layer's states, in rows. `address` is that of a TASK."""
    task = carray(_task(address), 1)[0]
    slots = carray(_integers(task.slots), task.num_rows)
    line = element_bytes(task.element) * task.width
    while True:
        first = fetch_add(address, SHARE)
        if first >= task.num_rows:
            break
        for row in range(first, min(first + SHARE, task.num_rows)):
            residual, out = task.residual + row * line, task.out + slots[row] * line
            if task.added != 0:
                _sum(task.element, task.width, residual, task.added + row * line, out)
            else:
                _copy(out, residual, line)
