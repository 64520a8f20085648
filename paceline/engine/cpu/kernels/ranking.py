"""The likeliest ids of rows of logits, in one pass over each row."""

from __future__ import annotations

import numpy as np
from llvmlite import ir
from numba import carray, from_dtype, types
from numba.core import cgutils
from numba.extending import intrinsic

from paceline.engine.cpu.kernels import vectors
from paceline.engine.cpu.kernels.vectors import (
    ADDRESS,
    I64,
    LANES,
    element_bytes,
    fetch_add,
    i64,
    kernel,
    load_element,
    part,
    pointer_to,
)

# Logits are [num_rows, vocab], dense; `ids` are int64 [num_rows, count], `values` float32 of the same shape.
TASK = np.dtype(
    [
        (name, np.int64)
        for name in ("next_row", "num_rows", "vocab", "element", "count", "logits", "ids", "values")
    ]
)
_TASK = from_dtype(TASK)
_task, _integers, _floats = (pointer_to(kind) for kind in (_TASK, types.int64, types.float32))


@intrinsic
def _first_above(context, element, numbers, place, end, floor):
    """Where, from `place` on, the first vector with an element above `floor` begins; `end` if none does.

    `end - place` is a multiple of LANES.
    """

    def generate(context, builder, signature, arguments):
        element, numbers, place, end, floor = arguments
        found = cgutils.alloca_once(builder, I64)
        builder.store(place, found)
        floors = vectors.splat(builder, floor)

        def emit(kind):
            look, done = builder.append_basic_block("look"), builder.append_basic_block("done")
            go_on, check = builder.append_basic_block("go_on"), builder.append_basic_block("check")
            builder.branch(check)
            builder.position_at_end(check)
            builder.cbranch(builder.icmp_signed("<", builder.load(found), end), look, done)
            builder.position_at_end(look)
            above = builder.fcmp_ordered(
                ">", vectors.load(builder, numbers, builder.load(found), kind), floors
            )
            mask = ir.IntType(LANES)
            builder.cbranch(
                builder.icmp_unsigned("!=", builder.bitcast(above, mask), ir.Constant(mask, 0)), done, go_on
            )
            builder.position_at_end(go_on)
            builder.store(builder.add(builder.load(found), i64(LANES)), found)
            builder.branch(check)
            builder.position_at_end(done)

        vectors.each_kind(builder, element, emit)
        return builder.load(found)

    return types.int64(types.int64, ADDRESS, types.int64, types.int64, types.float32), generate


@part
def _consider(ids, values, count, number, value):
    """Put an id in its place among the `count` likeliest; equal values keep the order in which they came."""
    if not value > values[count - 1]:
        return
    place = count - 1
    while place > 0 and value > values[place - 1]:
        values[place], ids[place] = values[place - 1], ids[place - 1]
        place -= 1
    values[place], ids[place] = value, number


@part
def _fill(ids, found, count):
    """The lowest ids that are not there yet, in place of those from `found` on."""
    number = 0
    while found < count:
        new = True
        for place in range(found):
            new = new and ids[place] != number
        if new:
            ids[found] = number
            found += 1
        number += 1


@kernel
def highest(address):
    """One thread's share of rows. Highest first, the lowest id first among equals; NaN is as low as -inf."""
    task = carray(_task(address), 1)[0]
    size, count, whole = element_bytes(task.element), task.count, task.vocab // LANES * LANES
    while True:
        row = fetch_add(address, 1)
        if row >= task.num_rows:
            break
        logits = task.logits + size * row * task.vocab
        ids = carray(_integers(task.ids + 8 * row * count), count)
        values = carray(_floats(task.values + 4 * row * count), count)
        ids[:] = -1
        values[:] = -np.inf
        place = 0
        while place < whole:
            place = _first_above(task.element, logits, place, whole, values[count - 1])
            if place < whole:
                for number in range(place, place + LANES):
                    _consider(ids, values, count, number, load_element(task.element, logits + size * number))
                place += LANES
        for number in range(whole, task.vocab):
            _consider(ids, values, count, number, load_element(task.element, logits + size * number))
        found = count
        while found > 0 and ids[found - 1] < 0:
            found -= 1
        _fill(ids, found, count)
