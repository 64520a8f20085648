"""Exact mode's ground: find the row counts at which this machine's matrix kernels agree bit for bit."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from paceline.engine.linear import PackedLinear, ProductRows

# Bounds to try, widest first. The last one gives every product the same row count.
CANDIDATES = (
    ProductRows(1, 256),
    ProductRows(1, 128),
    ProductRows(2, 128),
    ProductRows(2, 32),
    ProductRows(32, 32),
)
_WIDEST = CANDIDATES[0].most
_COUNTS = (1, 2, 3, 5, 8, 15, 16, 17, 24, 31, 32, 33, 48, 64, 65, 100, 127, 128)
_COUNTS_BEYOND = (129, 144, 160, 161, 176, 192, 193, 208, 224, 240, 255, 256)
_SEED = 20_240_229


def limit_products(layers: Iterable[PackedLinear], dtype: torch.dtype) -> bool:
    """Give every layer the widest of `CANDIDATES` within which a row's bits are its own.

    False, with all layers unlimited, where there is none for some layer. Layers of one shape share their
    kernels, so one of each is tried, on random rows. All outputs of the rows are compared: a different
    order of summation shows in some of them, not in each.
    """
    generator = torch.Generator().manual_seed(_SEED)
    found: dict[tuple[int, int], ProductRows | None] = {}
    layers = list(layers)
    for layer in layers:
        shape = (layer.in_features, layer.out_features)
        if shape not in found:
            x = torch.randn(_WIDEST, shape[0], generator=generator, dtype=torch.float32).to(dtype)
            found[shape] = next((rows for rows in CANDIDATES if _agree(layer, x, rows)), None)
    if None in found.values():
        return False
    for layer in layers:
        layer.rows = found[layer.in_features, layer.out_features] or layer.rows
    return True


def _agree(layer: PackedLinear, x: Tensor, rows: ProductRows) -> bool:
    reference = _in_parts(layer, x, rows.most)
    counts = [count for count in (*_COUNTS, *_COUNTS_BEYOND) if rows.least <= count < rows.most]
    for count in counts:
        # Only whole parts: a shorter last one would be another row count.
        whole = len(x) // count * count
        if not torch.equal(_in_parts(layer, x[:whole], count), reference[:whole]):
            return False
    return True


def _in_parts(layer: PackedLinear, x: Tensor, count: int) -> Tensor:
    return torch.cat([layer.product(part) for part in x.split(count)])
