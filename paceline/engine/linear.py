"""Linear layers whose row bits do not depend on how many rows stand beside them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

# Layers that transformers' decoders call one after the other with the same input.
SIBLINGS = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))


@dataclass(frozen=True, slots=True)
class ProductRows:
    """How many rows one matrix product may have.

    Matrix kernels differ by row count, and with them the order of summation. Within these bounds they
    agree on this machine, which `engine.exact` finds out.
    """

    least: int = 1
    most: int = 1 << 30


class PackedLinear(nn.Module):
    """A linear layer in products of `rows` rows, its weight laid out once for the CPU's matrix units.

    oneDNN's layout (`mkldnn._reorder_linear_weight`) saves the reordering in every call.
    """

    weight: Tensor
    bias: Tensor | None

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features = linear.in_features
        self.out_features = linear.out_features
        self.rows = ProductRows()
        # Laid out for one row: the only layout whose kernels were seen to agree over many row counts.
        packed = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), 1)
        self.register_buffer("weight", packed, persistent=False)
        self.register_buffer("bias", None if linear.bias is None else linear.bias.detach(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """x [..., rows, in_features] -> [..., rows, out_features]."""
        rows = x.numel() // self.in_features
        if self.rows.least <= rows <= self.rows.most:
            return self.product(x)
        flat = x.reshape(-1, self.in_features)
        if rows == 0:
            product = flat.new_empty(0, self.out_features)
        else:
            product = torch.cat([self._filled_product(part) for part in flat.split(self.rows.most)])
        return product.view(*x.shape[:-1], self.out_features)

    def product(self, x: Tensor) -> Tensor:
        """One matrix product, whatever its rows: x [..., in_features]."""
        return torch.ops.mkldnn._linear_pointwise.default(x, self.weight, self.bias, "none", [], "")  # type: ignore[no-any-return]

    def _filled_product(self, x: Tensor) -> Tensor:
        rows = x.shape[0]
        filling = self.rows.least - rows
        if filling > 0:
            x = nn.functional.pad(x, (0, 0, 0, filling))
        return self.product(x)[:rows]


class SiblingLinears:
    """Linear layers that read the same input, as one product: fewer, larger matrices."""

    def __init__(self, layers: Sequence[nn.Linear]) -> None:
        biases = [layer.bias for layer in layers]
        whole = nn.Linear(layers[0].in_features, sum(layer.out_features for layer in layers), bias=False)
        whole.weight = nn.Parameter(torch.cat([layer.weight.detach() for layer in layers]), False)
        if biases[0] is not None:
            whole.bias = nn.Parameter(torch.cat([bias.detach() for bias in biases]), False)
        self.product = PackedLinear(whole)
        self._widths = [layer.out_features for layer in layers]
        self._input: Tensor | None = None
        self._outputs: list[Tensor | None] = []

    def take(self, index: int, x: Tensor) -> Tensor:
        """The output of layer `index` for x; computed for all layers when the first of them asks."""
        if self._input is not x or self._outputs[index] is None:
            self._input = x
            self._outputs = list(self.product(x).split(self._widths, dim=-1))
        output = self._outputs[index]
        self._outputs[index] = None
        if not any(left is not None for left in self._outputs):
            self._input = None
        assert output is not None
        return output


class SiblingLinear(nn.Module):
    """One of `SiblingLinears` in its old place in the model."""

    def __init__(self, siblings: SiblingLinears, index: int, layer: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.siblings = siblings
        self._index = index

    def forward(self, x: Tensor) -> Tensor:
        """x [..., rows, in_features] -> [..., rows, out_features]."""
        return self.siblings.take(self._index, x)


def pack_linears(model: nn.Module) -> list[PackedLinear]:
    """Replace every plain `nn.Linear` of `model` in place; returns the products that are left.

    Quantised linears are subclasses or other modules and are left to their library.
    """
    packed: list[PackedLinear] = []
    for module in list(model.modules()):
        children = {name: child for name, child in module.named_children() if type(child) is nn.Linear}
        for names in SIBLINGS:
            layers = [children[name] for name in names if name in children]
            if len(layers) < len(names) or not _alike(layers):
                continue
            siblings = SiblingLinears(layers)
            packed.append(siblings.product)
            for index, name in enumerate(names):
                setattr(module, name, SiblingLinear(siblings, index, children.pop(name)))
        for name, child in children.items():
            layer = PackedLinear(child)
            setattr(module, name, layer)
            packed.append(layer)
    return packed


def _alike(layers: Sequence[nn.Linear]) -> bool:
    first = layers[0]
    return all(
        layer.in_features == first.in_features
        and layer.weight.dtype == first.weight.dtype
        and (layer.bias is None) == (first.bias is None)
        for layer in layers
    )
