"""Linear layers whose row bits do not depend on how many rows stand beside them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(slots=True)
class ProductRows:
    """How many rows one matrix product may have; every `PackedLinear` of a model reads the same one.

    Matrix kernels differ by row count, and with them the order of summation. Within these bounds they
    agree on this machine, which `engine.exact` finds out.
    """

    least: int = 1
    most: int = 1 << 30


class PackedLinear(nn.Module):
    """A linear layer in products of `ProductRows`, its weight laid out once for the CPU's matrix units.

    oneDNN's layout (`mkldnn._reorder_linear_weight`) saves the reordering in every call.
    """

    weight: Tensor
    bias: Tensor | None

    def __init__(self, linear: nn.Linear, rows: ProductRows) -> None:
        super().__init__()
        self.in_features = linear.in_features
        self.out_features = linear.out_features
        self._rows = rows
        # Laid out for one row: the only layout whose kernels were seen to agree over many row counts.
        packed = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), 1)
        self.register_buffer("weight", packed, persistent=False)
        self.register_buffer("bias", None if linear.bias is None else linear.bias.detach(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """x [..., rows, in_features] -> [..., rows, out_features]."""
        rows = x.numel() // self.in_features
        if self._rows.least <= rows <= self._rows.most:
            return self.product(x)
        flat = x.reshape(-1, self.in_features)
        if rows == 0:
            product = flat.new_empty(0, self.out_features)
        else:
            product = torch.cat([self._filled_product(part) for part in flat.split(self._rows.most)])
        return product.view(*x.shape[:-1], self.out_features)

    def product(self, x: Tensor) -> Tensor:
        """One matrix product, whatever its rows: x [..., in_features]."""
        return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")  # type: ignore[no-any-return]

    def _filled_product(self, x: Tensor) -> Tensor:
        rows = x.shape[0]
        filling = self._rows.least - rows
        if filling > 0:
            x = nn.functional.pad(x, (0, 0, 0, filling))
        return self.product(x)[:rows]


def pack_linears(model: nn.Module, rows: ProductRows) -> list[PackedLinear]:
    """Replace every plain `nn.Linear` of `model` in place; returns the new layers.

    Quantised linears are subclasses or other modules and are left to their library.
    """
    packed: list[PackedLinear] = []
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if type(child) is nn.Linear:
                layer = PackedLinear(child, rows)
                setattr(module, name, layer)
                packed.append(layer)
    return packed
