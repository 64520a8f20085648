"""The CPU's element-wise parts of a decoder layer, row by row, as transformers' Llama computes them.

Every step rounds to the weights' type where transformers' operators would, so a text is that of
transformers but for the order of the sum of squares. A row is computed from itself alone.
"""

from __future__ import annotations

import numpy as np
from llvmlite import ir
from numba import carray, from_dtype, types
from numba.core import cgutils
from numba.extending import intrinsic

from paceline.engine.cpu.kernels import vectors
from paceline.engine.cpu.kernels.vectors import (
    ADDRESS,
    element_bytes,
    fetch_add,
    i64,
    kernel,
    pointer_to,
)

# Rows that one thread takes at a time.
SHARE = 8


def _task_of(*fields):
    """A kernel's task: addresses and counts; `next_row` is shared by the threads."""
    return np.dtype([(name, np.int64) for name in ("next_row", "num_rows", "element", "width", *fields)])


# Rows are dense, `width` elements each (a multiple of LANES); those of `out` float32 where it is `wide`.
NORM = np.dtype([*_task_of("residual", "added", "weight", "out", "wide").descr, ("epsilon", np.float64)])
# `width` elements a head; `row_stride` from one row's first head to the next's.
ROTATION = _task_of("heads", "row_stride", "rows", "cosines", "sines")
# Rows of `both` are `width` gates, then as many ups.
GATE = _task_of("both", "out", "wide")
_norm, _rotation, _gate = (pointer_to(from_dtype(task)) for task in (NORM, ROTATION, GATE))


@intrinsic
def _normalize_row(context, element, width, added, residual, weight, out, wide, epsilon):
    """residual += added (where it is not 0); out = weight * (residual / root mean square)."""

    def generate(context, builder, signature, arguments):
        element, width, added, residual, weight, out, wide, epsilon = arguments
        place = cgutils.alloca_once(builder, vectors.VECTOR)

        def emit(kind):
            builder.store(vectors.constant(0.0), place)
            with builder.if_else(builder.icmp_signed("!=", added, i64(0))) as (add, keep):
                with add, vectors.each_vector(builder, width) as at:
                    x = builder.fadd(
                        vectors.load(builder, residual, at, kind), vectors.load(builder, added, at, kind)
                    )
                    vectors.store(builder, x, residual, at, kind)
                    x = vectors.through(builder, x, kind)
                    builder.store(vectors.call(builder, "fma", x, x, builder.load(place)), place)
                with keep, vectors.each_vector(builder, width) as at:
                    x = vectors.load(builder, residual, at, kind)
                    builder.store(vectors.call(builder, "fma", x, x, builder.load(place)), place)
            squares = vectors.fold(builder, builder.load(place), "fadd")
            mean = builder.fdiv(squares, builder.sitofp(width, vectors.F32))
            root = vectors.call(builder, "sqrt", builder.fadd(mean, epsilon))
            scale = vectors.splat(builder, builder.fdiv(ir.Constant(vectors.F32, 1.0), root))
            with vectors.each_vector(builder, width) as at:
                x = builder.fmul(vectors.load(builder, residual, at, kind), scale)
                x = vectors.through(builder, x, kind)
                x = builder.fmul(vectors.load(builder, weight, at, kind), x)
                vectors.store_rounded(builder, x, out, at, kind, wide)

        vectors.each_kind(builder, element, emit)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, *[ADDRESS] * 4, types.int64, types.float32), generate


@intrinsic
def _rotate_head(context, element, half, head, cosines, sines):
    """Rotate one head in place: x * cos + rotate_half(x) * sin (RoFormer, arXiv 2104.09864)."""

    def generate(context, builder, signature, arguments):
        element, half, head, cosines, sines = arguments

        def emit(kind):
            def product(x, factors, at):
                return vectors.through(
                    builder, builder.fmul(x, vectors.load(builder, factors, at, kind)), kind
                )

            with vectors.each_vector(builder, half) as low:
                high = builder.add(low, half)
                left, right = (vectors.load(builder, head, at, kind) for at in (low, high))
                rotated = builder.fsub(product(left, cosines, low), product(right, sines, low))
                vectors.store(builder, rotated, head, low, kind)
                rotated = builder.fadd(product(right, cosines, high), product(left, sines, high))
                vectors.store(builder, rotated, head, high, kind)

        vectors.each_kind(builder, element, emit)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, *[ADDRESS] * 3), generate


@intrinsic
def _gate_row(context, element, width, gates, ups, out, wide):
    """out = silu(gates) * ups."""

    def generate(context, builder, signature, arguments):
        element, width, gates, ups, out, wide = arguments
        log2_e = vectors.constant(-1.4426950408889634)

        def emit(kind):
            with vectors.each_vector(builder, width) as at:
                x = vectors.load(builder, gates, at, kind)
                below = builder.fadd(vectors.constant(1.0), vectors.exp2(builder, builder.fmul(x, log2_e)))
                x = vectors.through(builder, builder.fdiv(x, below), kind)
                x = builder.fmul(x, vectors.load(builder, ups, at, kind))
                vectors.store_rounded(builder, x, out, at, kind, wide)

        vectors.each_kind(builder, element, emit)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, *[ADDRESS] * 3, types.int64), generate


@kernel
def normalize(address):
    """One thread's share of RMSNorm (arXiv 1910.07467); `added`, if any, is added to the residual before."""
    task = carray(_norm(address), 1)[0]
    line = element_bytes(task.element) * task.width
    out_line = 4 * task.width if task.wide else line
    epsilon = np.float32(task.epsilon)
    while True:
        first = fetch_add(address, SHARE)
        if first >= task.num_rows:
            break
        for row in range(first, min(first + SHARE, task.num_rows)):
            added = task.added + row * line if task.added != 0 else 0
            residual, out = task.residual + row * line, task.out + row * out_line
            weight, wide = task.weight, task.wide
            _normalize_row(task.element, task.width, added, residual, weight, out, wide, epsilon)


@kernel
def rotate(address):
    """One thread's share of rotary position embeddings, in place."""
    task = carray(_rotation(address), 1)[0]
    size = element_bytes(task.element)
    while True:
        first = fetch_add(address, SHARE)
        if first >= task.num_rows:
            break
        for row in range(first, min(first + SHARE, task.num_rows)):
            angles = size * row * task.width
            for head in range(task.heads):
                _rotate_head(
                    task.element,
                    task.width // 2,
                    task.rows + size * (row * task.row_stride + head * task.width),
                    task.cosines + angles,
                    task.sines + angles,
                )


@kernel
def gate(address):
    """One thread's share of SwiGLU (arXiv 2002.05202)."""
    task = carray(_gate(address), 1)[0]
    line = element_bytes(task.element) * task.width
    out_line = 4 * task.width if task.wide else line
    while True:
        first = fetch_add(address, SHARE)
        if first >= task.num_rows:
            break
        for row in range(first, min(first + SHARE, task.num_rows)):
            gates = task.both + 2 * row * line
            out = task.out + row * out_line
            _gate_row(task.element, task.width, gates, gates + line, out, task.wide)
