"""What kernels do to rows of numbers: multiply-add, softmax, scaling. Sums have a fixed order."""

from __future__ import annotations

from itertools import product

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from paceline.engine.cpu.kernels import vectors
from paceline.engine.cpu.kernels.vectors import (
    ADDRESS,
    BFLOAT16,
    FEATURES,
    FLOAT32,
    KINDS,
    LANES,
    VECTOR,
    element_bytes,
    i64,
    part,
)

# Rows and numbers of each whose sums `_accumulate` keeps in registers: 24 of 16 numbers with AVX-512.
_SUMS = 24 * LANES if "+avx512f" in FEATURES else 6 * LANES
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
    context,
    weight_element,
    element,
    rows,
    width,
    weights,
    weight_stride,
    matrix,
    matrix_stride,
    out,
    out_stride,
    n,
):
    """out[r, :width] += sum over i < n of weights[r, i] * matrix[i, :width], i ascending, for r < rows.

    out is float32; weights and matrix hold elements, `rows` and `width` are one of _VARIANTS.
    """

    def generate(context, builder, signature, arguments):
        chosen, operands = arguments[:4], arguments[4:]
        kinds = sorted({(weight_kind, kind) for kind in KINDS for weight_kind in (FLOAT32, kind)})
        for (weight_kind, kind), (rows, width) in product(kinds, _VARIANTS):
            variant = (weight_kind, kind, rows, width)
            wanted = ir.Constant(ir.IntType(1), 1)
            for value, constant in zip(chosen, variant, strict=True):
                same = builder.icmp_signed("==", value, i64(constant))
                wanted = builder.and_(wanted, same)
            with builder.if_then(wanted):
                _emit_products(builder, *variant, *operands)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 4, *[ADDRESS] * 7), generate


def _emit_products(
    builder: ir.IRBuilder,
    weight_kind: int,
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
            stored = vectors.at(builder, weights, index, vectors.STORED[weight_kind])
            number = vectors.widened(builder, builder.load(stored, align=2), weight_kind)
            weight = vectors.splat(builder, number)
            for vector, column in enumerate(columns):
                place, _ = places[row, vector]
                builder.store(vectors.call(builder, "fma", weight, column, builder.load(place)), place)
    for place, index in places.values():
        vectors.store(builder, builder.load(place), out, index)


@intrinsic
def highest(context, scores, count):
    """The highest of `count` float32 scores, a multiple of LANES."""

    def generate(context, builder, signature, arguments):
        scores, count = arguments
        place = cgutils.alloca_once(builder, VECTOR)
        builder.store(vectors.constant(float("-inf")), place)
        with vectors.each_vector(builder, count) as index:
            part = vectors.load(builder, scores, index)
            builder.store(vectors.call(builder, "maxnum", builder.load(place), part), place)
        return vectors.fold(builder, builder.load(place), "maxnum")

    return types.float32(ADDRESS, types.int64), generate


@intrinsic
def soften(context, scores, count, highest, factor, narrow):
    """Replace scores by 2**((score - highest) * factor), as bfloat16 if `narrow`; returns the float32s' sum.

    `count` is a multiple of LANES. A score of -inf weighs exactly nothing.
    """

    def generate(context, builder, signature, arguments):
        scores, count, highest, factor, narrow = arguments
        place = cgutils.alloca_once(builder, VECTOR)
        builder.store(vectors.constant(0.0), place)
        top, factors = vectors.splat(builder, highest), vectors.splat(builder, factor)

        def weigh(kind):
            with vectors.each_vector(builder, count) as index:
                x = builder.fsub(vectors.load(builder, scores, index), top)
                weight = vectors.exp2(builder, builder.fmul(x, factors))
                # Two bytes are written where four have been read.
                vectors.store(builder, weight, scores, index, kind)
                builder.store(builder.fadd(builder.load(place), weight), place)

        with builder.if_else(builder.icmp_signed("!=", narrow, i64(0))) as (narrowed, kept):
            with narrowed:
                weigh(BFLOAT16)
            with kept:
                weigh(FLOAT32)
        return vectors.fold(builder, builder.load(place), "fadd")

    return types.float32(ADDRESS, types.int64, types.float32, types.float32, types.int64), generate


@intrinsic
def scale(context, element, count, numbers, factor, out):
    """Elements times a factor, as float32; `count` is a multiple of LANES."""

    def generate(context, builder, signature, arguments):
        element, count, numbers, factor, out = arguments
        factors = vectors.splat(builder, factor)

        def emit(kind):
            with vectors.each_vector(builder, count) as place:
                x = builder.fmul(vectors.load(builder, numbers, place, kind), factors)
                vectors.store(builder, x, out, place)

        vectors.each_kind(builder, element, emit)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, ADDRESS, types.float32, ADDRESS), generate


@intrinsic
def divide(context, element, count, numbers, divisor, out, wide):
    """float32 over a divisor, as elements or `wide`ly rounded to them; `count` is a multiple of LANES."""

    def generate(context, builder, signature, arguments):
        element, count, numbers, divisor, out, wide = arguments
        divisors = vectors.splat(builder, divisor)

        def emit(kind):
            with vectors.each_vector(builder, count) as place:
                x = builder.fdiv(vectors.load(builder, numbers, place), divisors)
                vectors.store_rounded(builder, x, out, place, kind, wide)

        vectors.each_kind(builder, element, emit)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, ADDRESS, types.float32, ADDRESS, types.int64), generate


@part
def multiply(
    weight_element,
    element,
    rows,
    width,
    weights,
    weight_stride,
    matrix,
    matrix_stride,
    out,
    out_stride,
    n,
):
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
                weight_element,
                element,
                taken,
                wide,
                weights + element_bytes(weight_element) * row * weight_stride,
                weight_stride,
                matrix + element_bytes(element) * column,
                matrix_stride,
                out + 4 * (row * out_stride + column),
                out_stride,
                n,
            )
            column += wide
        row += taken
