"""The processor's matrix unit (Intel AMX): whether there is one, and how its tiles are configured."""

from __future__ import annotations

from functools import cache

import numpy as np
import torch

from paceline.engine.cpu.kernels import amx as kernels

# By rows left over of a product: configurations for whole blocks and for these.
_CONFIGS = np.stack(
    [
        np.frombuffer(kernels.tile_config(kernels.ROWS) + kernels.tile_config(left or kernels.ROWS), np.uint8)
        for left in range(kernels.ROWS)
    ]
)


@cache
def matrix_unit() -> bool:
    """Whether this process may use the matrix unit. Linux grants it on request, once for each process."""
    return bool(kernels.HAS_TILES and torch.cpu._is_amx_tile_supported() and torch.cpu._init_amx())


def tile_configs(rows: int = 0) -> int:
    """The address of the tile configurations for `rows` rows; those for one row more lie behind it."""
    return _CONFIGS.ctypes.data + rows % kernels.ROWS * kernels.CONFIGS_BYTES
