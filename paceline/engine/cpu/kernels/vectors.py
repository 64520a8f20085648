"""Vectors of 16 numbers in LLVM's instructions, whatever the processor's own width; all sums in float32.

numba alone would leave it to LLVM whether a loop becomes vector code, and in which order it is summed.
"""

from __future__ import annotations

from contextlib import contextmanager

import numpy as np
import torch
from llvmlite import binding as llvm
from llvmlite import ir
from numba import cfunc, config, njit, types
from numba.core import cgutils
from numba.extending import intrinsic

# Elements of weights, activations, keys and values.
FLOAT32, BFLOAT16, FLOAT16 = KINDS = range(3)
ELEMENTS = {torch.float32: FLOAT32, torch.bfloat16: BFLOAT16, torch.float16: FLOAT16}
# Numbers in one vector.
LANES = 16
# Bytes that come from memory together.
CACHE_LINE = 64
# Instructions that may be compiled, as LLVM names them: numba's own settings go before the processor's.
FEATURES = frozenset((config.CPU_FEATURES or llvm.get_host_cpu_features().flatten()).split(","))

F32 = ir.FloatType()
I16, I32, I64 = ir.IntType(16), ir.IntType(32), ir.IntType(64)
STORED = (F32, I16, ir.HalfType())
VECTOR = ir.VectorType(F32, LANES)
ADDRESS = types.int64
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


def like(value: ir.Value, number: float, element: ir.Type | None = None) -> ir.Constant:
    """A constant of the value's shape, a number or a vector, of its elements' type or another."""
    if isinstance(value.type, ir.VectorType):
        return ir.Constant(ir.VectorType(element or value.type.element, LANES), [number] * LANES)
    return ir.Constant(element or value.type, number)


def i64(number: int) -> ir.Constant:
    """An int64 constant."""
    return ir.Constant(I64, number)


def constant(number: float) -> ir.Constant:
    """A float32 vector of one number."""
    return ir.Constant(VECTOR, [number] * LANES)


def at(builder: ir.IRBuilder, address: ir.Value, place: ir.Value, kind: ir.Type) -> ir.Value:
    """The pointer to element `place` of `kind` behind an address."""
    return builder.gep(builder.inttoptr(address, kind.as_pointer()), [place])


def widened(builder: ir.IRBuilder, stored: ir.Value, kind: int) -> ir.Value:
    """What was stored as `kind`, a number or a vector, as float32."""
    if kind == FLOAT32:
        return stored
    float32 = like(stored, 0, F32).type
    if kind == FLOAT16:
        return builder.fpext(stored, float32)
    zero = like(stored, 0, I32)
    return builder.bitcast(builder.shl(builder.zext(stored, zero.type), like(zero, 16)), float32)


def rounded(builder: ir.IRBuilder, number: ir.Value, kind: int) -> ir.Value:
    """float32, a number or a vector, as `kind` is stored: the nearest, ties to even."""
    if kind == FLOAT32:
        return number
    if kind == FLOAT16:
        return builder.fptrunc(number, like(number, 0, ir.HalfType()).type)
    bits = builder.bitcast(number, like(number, 0, I32).type)
    odd = builder.and_(builder.lshr(bits, like(bits, 16)), like(bits, 1))
    bits = builder.add(bits, builder.add(odd, like(bits, 0x7FFF)))
    bits = builder.trunc(builder.lshr(bits, like(bits, 16)), like(bits, 0, I16).type)
    # Rounding must not turn a NaN into a number.
    nan = builder.fcmp_unordered("uno", number, number)
    return builder.select(nan, like(bits, 0x7FC0), bits)


def through(builder: ir.IRBuilder, number: ir.Value, kind: int) -> ir.Value:
    """float32 rounded as if it had been stored as `kind`."""
    return widened(builder, rounded(builder, number, kind), kind)


def load(builder: ir.IRBuilder, address: ir.Value, place: ir.Value, kind: int = FLOAT32) -> ir.Value:
    """A vector of stored elements, as float32."""
    pointer = at(builder, address, place, STORED[kind])
    vector = ir.VectorType(STORED[kind], LANES)
    return widened(builder, builder.load(builder.bitcast(pointer, vector.as_pointer()), align=2), kind)


def store_rounded(
    builder: ir.IRBuilder,
    vector: ir.Value,
    address: ir.Value,
    place: ir.Value,
    kind: int,
    wide: ir.Value,
) -> None:
    """Store a float32 vector as `kind`, or where `wide` is not 0 as float32 that was rounded to it."""
    with builder.if_else(builder.icmp_signed("!=", wide, i64(0))) as (widely, narrowly):
        with widely:
            store(builder, through(builder, vector, kind), address, place)
        with narrowly:
            store(builder, vector, address, place, kind)


def store(
    builder: ir.IRBuilder, vector: ir.Value, address: ir.Value, place: ir.Value, kind: int = FLOAT32
) -> None:
    """Store a float32 vector as `kind`."""
    vector = rounded(builder, vector, kind)
    pointer = at(builder, address, place, STORED[kind])
    builder.store(vector, builder.bitcast(pointer, vector.type.as_pointer()), align=2)


@contextmanager
def each_vector(builder, count):
    """A loop over `count` numbers, a multiple of LANES; gives the index of each vector's first."""
    with cgutils.for_range(builder, builder.udiv(count, i64(LANES))) as loop:
        yield builder.mul(loop.index, i64(LANES))


def splat(builder: ir.IRBuilder, number: ir.Value) -> ir.Value:
    """A vector of one float32 number."""
    undefined = ir.Constant(VECTOR, ir.Undefined)
    one = builder.insert_element(undefined, number, ir.Constant(I32, 0))
    return builder.shuffle_vector(one, undefined, ir.Constant(ir.VectorType(I32, LANES), [0] * LANES))


def call(builder: ir.IRBuilder, name: str, *arguments: ir.Value) -> ir.Value:
    """One of LLVM's own functions on float32, numbers or vectors."""
    kind = arguments[0].type
    suffix = f"v{LANES}f32" if kind == VECTOR else "f32"
    signature = ir.FunctionType(kind, [kind] * len(arguments))
    return builder.call(
        cgutils.get_or_insert_function(builder.module, signature, f"llvm.{name}.{suffix}"), arguments
    )


def prefetch(builder: ir.IRBuilder, address: ir.Value) -> None:
    """Let the cache line at an address be fetched into the second level, if it is anywhere."""
    pointer = builder.inttoptr(address, ir.IntType(8).as_pointer())
    signature = ir.FunctionType(ir.VoidType(), [pointer.type, I32, I32, I32])
    function = cgutils.get_or_insert_function(builder.module, signature, "llvm.prefetch.p0")
    # To read; how near, of 0 to 3; data.
    builder.call(function, [pointer, *(ir.Constant(I32, number) for number in (0, 2, 1))])


def fold(builder: ir.IRBuilder, vector: ir.Value, name: str) -> ir.Value:
    """The lanes of a vector taken together one by one, in order, by `fadd` or one of LLVM's functions."""
    total = builder.extract_element(vector, ir.Constant(I32, 0))
    for lane in range(1, LANES):
        number = builder.extract_element(vector, ir.Constant(I32, lane))
        total = builder.fadd(total, number) if name == "fadd" else call(builder, name, total, number)
    return total


def exp2(builder: ir.IRBuilder, x: ir.Value) -> ir.Value:
    """2**x of a vector; exactly 0 from -127 down."""
    # 2**-127 has an exponent field of zero, which is zero.
    x = call(builder, "minnum", call(builder, "maxnum", x, like(x, -127.0)), like(x, 127.0))
    whole = call(builder, "floor", builder.fadd(x, like(x, 0.5)))
    fraction = builder.fsub(x, whole)
    power = like(x, _EXP2[0])
    for coefficient in _EXP2[1:]:
        power = call(builder, "fma", power, fraction, like(x, coefficient))
    exponent = builder.fptosi(whole, like(x, 0, I32).type)
    exponent = builder.shl(builder.add(exponent, like(exponent, 127)), like(exponent, 23))
    return builder.fmul(power, builder.bitcast(exponent, VECTOR))


def each_kind(builder, element, emit):
    """Emit `emit(kind)` for every kind, to be run for the one that `element` is."""
    for kind in KINDS:
        with builder.if_then(builder.icmp_signed("==", element, i64(kind))):
            emit(kind)


@intrinsic
def load_element(context, element, address):
    """The float32 value of one stored element."""

    def generate(context, builder, signature, arguments):
        element, address = arguments
        place = cgutils.alloca_once(builder, F32)

        def emit(kind):
            stored = builder.load(at(builder, address, i64(0), STORED[kind]), align=2)
            builder.store(widened(builder, stored, kind), place)

        each_kind(builder, element, emit)
        return builder.load(place)

    return types.float32(types.int64, ADDRESS), generate


@intrinsic
def store_element(context, element, address, number):
    """Round float32 to the nearest stored element, ties to even."""

    def generate(context, builder, signature, arguments):
        element, address, number = arguments

        def emit(kind):
            pointer = at(builder, address, i64(0), STORED[kind])
            builder.store(rounded(builder, number, kind), pointer, align=2)

        each_kind(builder, element, emit)
        return context.get_dummy_value()

    return types.void(types.int64, ADDRESS, types.float32), generate


@intrinsic
def fetch_add(context, address, number):
    """Add to an int64 that threads share; returns what it was."""

    def generate(context, builder, signature, arguments):
        address, number = arguments
        return builder.atomic_rmw("add", at(builder, address, i64(0), I64), number, "monotonic")

    return types.int64(ADDRESS, types.int64), generate


def kernel(function):
    """Compile a kernel, which gets the address of its task; from the cache where there is one."""
    return _cached(cfunc(types.void(types.int64), cache=True), cfunc(types.void(types.int64)), function)


def part(function):
    """Compile a function that kernels call; from the cache where there is one."""
    return _cached(njit(cache=True), njit, function)


def _cached(with_cache, without, function):
    try:
        return with_cache(function)
    except RuntimeError:  # no folder that numba may write to
        return without(function)


def on_stack(length):
    """A function that gives the address of so many bytes of its caller's stack, from a cache line's start."""

    @intrinsic
    def place(context):
        def generate(context, builder, signature, arguments):
            place = cgutils.alloca_once(builder, ir.ArrayType(ir.IntType(8), length))
            place.align = CACHE_LINE
            return builder.ptrtoint(place, I64)

        return types.int64(), generate

    return place


def pointer_to(kind):
    """A function of numba's that makes an address a pointer to numbers or records of `kind`."""

    @intrinsic
    def pointer(context, address):
        def generate(context, builder, signature, arguments):
            return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))

        return types.CPointer(kind)(ADDRESS), generate

    return pointer


def offset(record: np.dtype[np.void], field: str) -> int:
    """Where a field begins in a record, in bytes."""
    assert record.fields is not None
    return record.fields[field][1]


@njit(inline="always")
def element_bytes(element):
    """Bytes of one stored element."""
    return 4 if element == FLOAT32 else 2
