"""Linear layers run on row groups of fixed size, with weights laid out for the CPU's matrix units."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class RowGroups:
    """How the rows of the forward in hand are cut; every `GroupedLinear` of a model reads the same one."""

    def __init__(self, default: int) -> None:
        self.default = default
        self.sizes: tuple[int, ...] = ()

    def of(self, rows: int) -> tuple[int, ...]:
        """Group sizes for an input of `rows` rows: the batch's own cut, or whole default groups."""
        if sum(self.sizes) == rows:
            return self.sizes
        return (self.default,) * -(-rows // self.default)


class GroupedLinear(nn.Module):
    """A linear layer whose row bits do not depend on how many rows stand beside them.

    Matrix kernels differ by row count, and with them the order of summation. Here every product has
    one of few fixed row counts, so a row always meets the same kernel. On the CPU the weight is also
    laid out once for oneDNN (`mkldnn._reorder_linear_weight`), which saves the per-call reordering.
    """

    weight: Tensor
    bias: Tensor | None

    def __init__(self, linear: nn.Linear, groups: RowGroups, *, prepack: bool) -> None:
        super().__init__()
        self._groups = groups
        self._packed = prepack
        self.in_features = linear.in_features
        self.out_features = linear.out_features
        weight = linear.weight.detach()
        if prepack:
            weight = torch.ops.mkldnn._reorder_linear_weight(weight, groups.default)
        self.register_buffer("weight", weight, persistent=False)
        self.register_buffer("bias", None if linear.bias is None else linear.bias.detach(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """x [..., rows, in_features] -> [..., rows, out_features]."""
        flat = x.reshape(-1, self.in_features)
        rows = flat.shape[0]
        if rows == 0:
            return x.new_empty(*x.shape[:-1], self.out_features)
        groups = self._groups.of(rows)
        filling = sum(groups) - rows
        if filling:
            flat = nn.functional.pad(flat, (0, 0, 0, filling))
        if len(groups) == 1:
            product = self._product(flat)
        else:
            product = torch.cat([self._product(part) for part in flat.split(list(groups))])
        return product[:rows].view(*x.shape[:-1], self.out_features)

    def _product(self, x: Tensor) -> Tensor:
        if self._packed:
            return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")  # type: ignore[no-any-return]
        return nn.functional.linear(x, self.weight, self.bias)


def group_linears(model: nn.Module, groups: RowGroups, *, prepack: bool) -> int:
    """Replace every plain `nn.Linear` of `model` in place; returns how many.

    Quantised linears are subclasses or other modules and are left to their library.
    """
    replaced = 0
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if type(child) is nn.Linear:
                setattr(module, name, GroupedLinear(child, groups, prepack=prepack))
                replaced += 1
    return replaced
