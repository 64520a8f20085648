"""Kernels in order on one team: every thread is done with a step before any begins the next."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numba import carray, from_dtype

from paceline.engine.cpu.kernels import sequence
from paceline.engine.cpu.kernels.vectors import fetch_add, kernel, pointer_to
from paceline.engine.cpu.team import Kernel, run_in_order

ITEMS = 64
TASK = np.dtype([("next_item", np.int64), ("before", np.int64), ("after", np.int64)])
_task = pointer_to(from_dtype(TASK))
_items = pointer_to(from_dtype(np.dtype([("number", np.int64)])))


@kernel
def _sum_all(address):  # type: ignore[no-untyped-def]
    """Every item of `after` is 1 + the sum of all items of `before`: wrong if one of those is late."""
    task = carray(_task(address), 1)[0]
    before, after = carray(_items(task.before), ITEMS), carray(_items(task.after), ITEMS)
    while True:
        item = fetch_add(address, 1)
        if item >= ITEMS:
            break
        total = 1
        for other in range(ITEMS):
            total += before[other].number
        after[item].number = total % 1_000_003


@pytest.mark.parametrize("threads", [1, 2, 3, 7])
def test_a_step_sees_all_of_the_step_before(threads: int) -> None:
    # The team is torch's: it must be loaded.
    torch.set_num_threads(torch.get_num_threads())
    summing = Kernel(_sum_all.address)
    for repeat in range(20):
        lines = np.full((101, ITEMS), repeat, dtype=np.int64)
        tasks = np.zeros(100, dtype=TASK)
        tasks["before"] = lines.ctypes.data + np.arange(100) * lines.strides[0]
        tasks["after"] = tasks["before"] + lines.strides[0]
        steps = np.zeros(100, dtype=sequence.STEP)
        steps["kernel"] = summing.address
        steps["task"] = tasks.ctypes.data + np.arange(100) * tasks.strides[0]
        run_in_order(steps, threads)
        expected = repeat
        for line in lines[1:]:
            expected = (1 + ITEMS * expected) % 1_000_003
            assert (line == expected).all()


def test_no_steps_are_no_work() -> None:
    run_in_order(np.zeros(0, dtype=sequence.STEP), 2)
