"""Products on vectors: a few rows by the outputs of one block, their sums in registers.

Rows are float32, so that a number is spread over a vector as it is loaded. A weight is widened once for all
of them; in bfloat16 one vector holds two inputs of 16 outputs, and a shift or a mask makes either float32.

What is needed next is fetched from memory meanwhile, line by line: many at once would hold up the loads of
what is needed now.
"""

from __future__ import annotations

from itertools import product

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from paceline.engine.cpu.kernels import vectors
from paceline.engine.cpu.kernels.amx import COLUMNS
from paceline.engine.cpu.kernels.vectors import (
    BFLOAT16,
    CACHE_LINE,
    F32,
    FEATURES,
    FLOAT32,
    I32,
    KINDS,
    LANES,
    VECTOR,
    i64,
    part,
)

# Most rows of a panel: two vectors of sums each, 24 of the 32 registers of AVX-512 or 8 of the 16 of AVX2.
ROWS = 12 if "+avx512f" in FEATURES else 2
# Inputs that one turn of the loop takes.
STEP = 8
# Fetches of one turn, by kind of element: as many as its weights have cache lines.
_FETCHES = [STEP * COLUMNS * (4 if kind == FLOAT32 else 2) // CACHE_LINE for kind in KINDS]


@intrinsic
def _multiply(context, element, rows, x, line, weight, steps, sums, ahead, gap):
    def generate(context, builder, signature, arguments):
        element, rows, *operands = arguments
        for kind, count in product(KINDS, range(1, ROWS + 1)):
            wanted = builder.and_(
                builder.icmp_signed("==", element, i64(kind)), builder.icmp_signed("==", rows, i64(count))
            )
            with builder.if_then(wanted):
                _emit(builder, kind, count, *operands)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 9), generate


def _emit(
    builder: ir.IRBuilder,
    kind: int,
    rows: int,
    x: ir.Value,
    line: ir.Value,
    weight: ir.Value,
    steps: ir.Value,
    sums: ir.Value,
    ahead: ir.Value,
    gap: ir.Value,
) -> None:
    """One variant of `multiply`."""
    places = {
        (row, side): cgutils.alloca_once(builder, VECTOR) for row, side in product(range(rows), range(2))
    }
    for place in places.values():
        builder.store(vectors.constant(0.0), place)
    firsts = [builder.add(x, builder.mul(line, i64(row))) for row in range(rows)]
    with cgutils.for_range(builder, steps) as loop:
        step = loop.index
        fetched = builder.add(ahead, builder.mul(builder.mul(step, i64(_FETCHES[kind])), gap))
        for offset, weights in _weights(builder, kind, weight, step):
            for _ in range(_FETCHES[kind] // STEP):
                vectors.prefetch(builder, fetched)
                fetched = builder.add(fetched, gap)
            at = builder.add(builder.mul(step, i64(STEP)), i64(offset))
            for row, first in enumerate(firsts):
                number = vectors.splat(builder, builder.load(vectors.at(builder, first, at, F32), align=4))
                for side in range(2):
                    place = places[row, side]
                    total = vectors.call(builder, "fma", number, weights[side], builder.load(place))
                    builder.store(total, place)
    for (row, side), place in places.items():
        vectors.store(builder, builder.load(place), sums, i64(row * COLUMNS + side * LANES))


def _weights(builder, kind, weight, step):
    """Each input of one step, in order, with its weights of the block's outputs: two float32 vectors."""
    if kind != BFLOAT16:
        first = builder.mul(step, i64(STEP * COLUMNS))
        for offset in range(STEP):
            starts = [builder.add(first, i64(offset * COLUMNS + side * LANES)) for side in range(2)]
            yield offset, [vectors.load(builder, weight, start, kind) for start in starts]
        return
    # In numbers of both inputs of a pair.
    first = builder.mul(step, i64(COLUMNS * STEP // 2))
    wide = ir.VectorType(I32, LANES)
    for pair in range(STEP // 2):
        starts = [builder.add(first, i64(pair * COLUMNS + side * LANES)) for side in range(2)]
        pointers = [vectors.at(builder, weight, start, I32) for start in starts]
        both = [
            builder.load(builder.bitcast(pointer, wide.as_pointer()), align=CACHE_LINE)
            for pointer in pointers
        ]
        low = [builder.shl(numbers, ir.Constant(wide, [16] * LANES)) for numbers in both]
        yield 2 * pair, [builder.bitcast(numbers, VECTOR) for numbers in low]
        high = [builder.and_(numbers, ir.Constant(wide, [-(1 << 16)] * LANES)) for numbers in both]
        yield 2 * pair + 1, [builder.bitcast(numbers, VECTOR) for numbers in high]


@part
def multiply(element, rows, x, line, weight, steps, sums, ahead, gap):
    """sums[r, :COLUMNS] = x[r] @ weight in float32, over STEP times `steps` inputs, for 1 to ROWS rows.

    x holds float32, `line` bytes from row to row. The block's weight holds elements: [inputs, COLUMNS], but
    bfloat16 [inputs / 2, COLUMNS, 2]. While sums are made, memory is not idle: for every line of the weight
    one is fetched, from the address `ahead` on, `gap` bytes apart (of one line, too: it comes once).
    """
    _multiply(element, rows, x, line, weight, steps, sums, ahead, gap)
