"""Exact mode's ground: find the row counts at which this machine's matrix kernels agree bit for bit."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from paceline.engine.linear import PackedLinear, ProductRows

# Bounds to try, widest first. The last one gives every product the same row count.
CANDIDATES = (ProductRows(1, 128), ProductRows(2, 128), ProductRows(2, 32), ProductRows(32, 32))
_COUNTS = (1, 2, 3, 5, 8, 15, 16, 17, 24, 31, 32, 33, 48, 64, 65, 100, 128)
_SEED = 20_240_229


def agreeing_rows(layers: Iterable[PackedLinear], dtype: torch.dtype) -> ProductRows | None:
    """The widest of `CANDIDATES` within which every layer gives a row the same bits; None if none does.

    Layers of one shape share their kernels, so one of each is tried, on random rows. What is compared
    are all outputs of 128 rows: a different order of summation shows in some of them, not in each.
    """
    shapes = {(layer.in_features, layer.out_features): layer for layer in layers}
    generator = torch.Generator().manual_seed(_SEED)
    inputs = {
        shape: torch.randn(128, shape[0], generator=generator, dtype=torch.float32).to(dtype)
        for shape in shapes
    }
    for rows in CANDIDATES:
        if all(_agree(layer, inputs[shape], rows) for shape, layer in shapes.items()):
            return ProductRows(rows.least, rows.most)
    return None


def _agree(layer: PackedLinear, x: Tensor, rows: ProductRows) -> bool:
    reference = _in_parts(layer, x, rows.most)
    counts = [count for count in _COUNTS if rows.least <= count < rows.most]
    for count in counts:
        # Only whole parts: a shorter last one would be another row count.
        whole = len(x) // count * count
        if not torch.equal(_in_parts(layer, x[:whole], count), reference[:whole]):
            return False
    return True


def _in_parts(layer: PackedLinear, x: Tensor, count: int) -> Tensor:
    return torch.cat([layer.product(part) for part in x.split(count)])
