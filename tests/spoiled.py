"""A pool in which whatever is read and was not written shows."""

from __future__ import annotations

import torch

from paceline.engine.kv import KVLayout, KVPool


def spoil(pool: KVPool) -> None:
    """Fill a pool with infinities and NaNs, and values in pairs, which are never such, with huge numbers."""
    # Two bfloat16 infinities, where keys lie in pairs.
    pool.keys.fill_(torch.inf if pool.keys.is_floating_point() else 0x7F807F80)
    pool.values.fill_(3e38 if pool.layout is KVLayout.PAIRS else torch.nan)
