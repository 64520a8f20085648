"""Calls of compiled kernels, on this thread or on the team of threads that torch's own operators use.

A second team would spin against torch's: on two cores that halves the speed of both.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from functools import cache

_SIGNATURE = ctypes.CFUNCTYPE(None, ctypes.c_int64)


class Kernel:
    """A function of one address in machine code."""

    def __init__(self, address: int) -> None:
        self._address = address
        self._alone = _SIGNATURE(address)

    def __call__(self, task: int, threads: int = 1) -> None:
        """Run with the address of its task, by so many threads at once."""
        if threads > 1 and (parallel := _parallel()) is not None:
            parallel(self._address, task, threads, 0)
        else:
            self._alone(task)


@cache
def _parallel() -> Callable[[int, int, int, int], None] | None:
    """What compilers call for `#pragma omp parallel`; GNU's, LLVM's and Intel's runtimes all have it."""
    if not os.path.exists("/proc/self/maps"):
        return None
    with open("/proc/self/maps", encoding="utf-8") as maps:
        files = {line.split()[-1] for line in maps if "omp" in line.rsplit("/", 1)[-1]}
    # torch's own first: other libraries bring theirs.
    for file in sorted(files, key=lambda file: ("/torch/" not in file, file)):
        try:
            parallel = ctypes.CDLL(file).GOMP_parallel
        except (OSError, AttributeError):
            continue
        parallel.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
        parallel.restype = None
        return parallel
    return None
