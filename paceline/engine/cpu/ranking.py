"""The likeliest ids of rows of logits, by `kernels.ranking`."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from paceline.engine import operators
from paceline.engine.cpu.kernels import ranking as kernels
from paceline.engine.cpu.kernels.vectors import ELEMENTS
from paceline.engine.cpu.team import Kernel

_highest = Kernel(kernels.highest.address)


def highest(logits: Tensor, count: int) -> NDArray[np.int64]:
    """See `Backend.highest`. Other types than the kernels' are left to torch."""
    if logits.dtype not in ELEMENTS:
        return operators.highest(logits, count)
    logits = logits.contiguous()
    rows, vocab = logits.shape
    found = np.empty((rows, count), dtype=np.int64)
    values = np.empty((rows, count), dtype=np.float32)
    task = np.zeros((), dtype=kernels.TASK)
    task["num_rows"], task["vocab"], task["count"] = rows, vocab, count
    task["element"], task["logits"] = ELEMENTS[logits.dtype], logits.data_ptr()
    task["ids"], task["values"] = found.ctypes.data, values.ctypes.data
    _highest(task.ctypes.data, min(rows, torch.get_num_threads()))
    return found
