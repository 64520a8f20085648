"""The likeliest ids of rows of logits."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from paceline.engine.devices import backend_of


def highest(logits: Tensor, count: int) -> NDArray[np.int64]:
    """The `count` highest ids of each row [rows, count], the highest first; logits [rows, vocab].

    The first one is the lowest id among equals, NaN counts as -inf. On the CPU that holds for the others
    too, and ids do not repeat.
    """
    return backend_of(logits.device.type).highest(logits, min(count, logits.shape[1]))
