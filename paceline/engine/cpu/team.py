"""Calls of compiled kernels, on this thread or on the team of threads that torch's own operators use.

A second team would spin against torch's: on two cores that halves the speed of both.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from paceline.engine.cpu.kernels import sequence

_SIGNATURE = ctypes.CFUNCTYPE(None, ctypes.c_int64)


class Kernel:
    """A function of one address in machine code."""

    def __init__(self, address: int) -> None:
        self.address = address
        self._alone = _SIGNATURE(address)

    def __call__(self, task: int, threads: int = 1) -> None:
        """Run on the task at this address, on `threads` threads at once."""
        if threads > 1 and (team := _team()) is not None:
            team.run(self.address, task, threads, 0)
        else:
            self._alone(task)


_run = Kernel(sequence.run.address)


def run_in_order(steps: NDArray[np.void], threads: int) -> None:
    """Run kernels in order on `threads` threads, each when all threads have finished the one before.

    `steps` are `sequence.STEP`s: each kernel's address and its task's.
    """
    task = np.zeros((), dtype=sequence.TASK)
    task["steps"], task["num_steps"] = steps.ctypes.data, len(steps)
    if threads > 1 and (team := _team()) is not None:
        task["team_size"], task["give_way"] = team.size_function, _yield_function()
    _run(task.ctypes.data, threads)


@dataclass(frozen=True, slots=True)
class _Team:
    # What compilers call for `#pragma omp parallel`, and the address of omp_get_num_threads.
    run: Callable[[int, int, int, int], None]
    size_function: int


@cache
def _team() -> _Team | None:
    """The thread team of torch's OpenMP runtime; GNU's, LLVM's and Intel's have the same functions."""
    if not os.path.exists("/proc/self/maps"):
        return None
    with open("/proc/self/maps", encoding="utf-8") as maps:
        files = {line.split()[-1] for line in maps if "omp" in line.rsplit("/", 1)[-1]}
    # torch's own first: other libraries bring theirs.
    for file in sorted(files, key=lambda file: ("/torch/" not in file, file)):
        try:
            library = ctypes.CDLL(file)
            parallel, size_function = library.GOMP_parallel, _address(library.omp_get_num_threads)
        except (OSError, AttributeError):
            continue
        parallel.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
        parallel.restype = None
        return _Team(parallel, size_function)
    return None


@cache
def _yield_function() -> int:
    return _address(ctypes.CDLL(None).sched_yield)


def _address(function: object) -> int:
    return ctypes.cast(function, ctypes.c_void_p).value or 0  # type: ignore[arg-type]
