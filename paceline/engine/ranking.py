"""The likeliest ids of rows of logits."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from paceline.engine.kernels import ranking as kernels
from paceline.engine.kernels.vectors import ELEMENTS
from paceline.engine.team import Kernel

_highest = Kernel(kernels.highest.address)


def highest(logits: Tensor, count: int) -> NDArray[np.int64]:
    """The `count` highest ids of each row [rows, count], the highest first; logits [rows, vocab].

    The first one is the lowest id among equals, NaN counts as -inf. On the CPU that holds for the others
    too, and ids do not repeat.
    """
    count = min(count, logits.shape[1])
    if logits.device.type != "cpu" or logits.dtype not in ELEMENTS:
        # Both of torch's take NaN for the largest.
        logits = logits.masked_fill(logits.isnan(), -torch.inf)
        ids = logits.topk(count, dim=-1).indices
        ids[:, 0] = logits.argmax(dim=-1)
        on_cpu: NDArray[np.int64] = ids.cpu().numpy()
        return on_cpu
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
