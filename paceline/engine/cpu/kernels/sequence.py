"""Kernels one after the other on one team of threads, which waits for its slowest between any two.

A forward of 30 layers is 300 kernels of 10 to 100 microseconds: started one by one from Python, a third of
the time goes into starting them.
"""

from __future__ import annotations

import numpy as np
from llvmlite import ir
from numba import carray, from_dtype, types
from numba.extending import intrinsic

from paceline.engine.cpu.kernels import vectors
from paceline.engine.cpu.kernels.vectors import ADDRESS, I64, i64, kernel, pointer_to

# How often a thread looks whether the others have come before it lets other processes have its core.
SPINS = 4096

# A kernel's machine code and the address of its task.
STEP = np.dtype([("kernel", np.int64), ("task", np.int64)])
TASK = np.dtype(
    [
        (name, np.int64)
        for name in (
            # Times that a thread has come to the end of a step; shared.
            "arrived",
            "steps",
            "num_steps",
            # C functions without arguments: how many threads the team has (0: this one only), and
            # sched_yield.
            "team_size",
            "give_way",
        )
    ]
)
_TASK, _STEP = from_dtype(TASK), from_dtype(STEP)
_task, _steps = pointer_to(_TASK), pointer_to(_STEP)


@intrinsic
def _run(context, function, task):
    """Call a kernel."""

    def generate(context, builder, signature, arguments):
        kind = ir.FunctionType(ir.VoidType(), [I64])
        builder.call(builder.inttoptr(arguments[0], kind.as_pointer()), [arguments[1]])
        return context.get_dummy_value()

    return types.void(ADDRESS, ADDRESS), generate


@intrinsic
def _ask(context, function):
    """Call a C function without arguments that returns an int."""

    def generate(context, builder, signature, arguments):
        kind = ir.FunctionType(vectors.I32, [])
        return builder.sext(builder.call(builder.inttoptr(arguments[0], kind.as_pointer()), []), I64)

    return types.int64(ADDRESS), generate


@intrinsic
def _arrive(context, counter):
    """Add 1 to a shared counter; what this thread wrote before, others see after."""

    def generate(context, builder, signature, arguments):
        place = vectors.at(builder, arguments[0], i64(0), I64)
        return builder.atomic_rmw("add", place, i64(1), "acq_rel")

    return types.int64(ADDRESS), generate


@intrinsic
def _arrivals(context, counter):
    """The shared counter, read anew."""

    def generate(context, builder, signature, arguments):
        return builder.load_atomic(vectors.at(builder, arguments[0], i64(0), I64), "acquire", 8)

    return types.int64(ADDRESS), generate


@kernel
def run(address):
    """One thread's share of all steps. `address` is that of a TASK."""
    task = carray(_task(address), 1)[0]
    threads = _ask(task.team_size) if task.team_size != 0 else 1
    steps = carray(_steps(task.steps), task.num_steps)
    for number in range(task.num_steps):
        step = steps[number]
        _run(step.kernel, step.task)
        _arrive(address)
        spins = 0
        while _arrivals(address) < threads * (number + 1):
            spins += 1
            if spins > SPINS:
                _ask(task.give_way)
