"""Linear layers whose row bits do not depend on how many rows stand beside them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeGuard

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from paceline.engine.cpu.kernels import amx, panels
from paceline.engine.cpu.kernels import products as kernels
from paceline.engine.cpu.kernels.vectors import ELEMENTS
from paceline.engine.cpu.team import Kernel
from paceline.engine.cpu.tiles import matrix_unit, tile_configs

# Layers that transformers' decoders call one after the other with the same input.
SIBLINGS = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))

multiply = Kernel(kernels.multiply.address)


class PackedLinear(nn.Module):
    """A linear layer by `kernels.products`, its weight laid out once as that reads it."""

    packed: Tensor
    bias: Tensor | None

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features = linear.in_features
        self.out_features = linear.out_features
        weight = linear.weight.detach()
        self.tiled = weight.dtype == torch.bfloat16 and matrix_unit()
        # Inputs of a row as the kernel reads it: filled up to whole tiles or steps.
        self.inputs = _whole(self.in_features, amx.DEPTH if self.tiled else panels.STEP)
        laid_out = _tiles(weight) if self.tiled else _columns(weight)
        self.register_buffer("packed", laid_out, persistent=False)
        bias = None if linear.bias is None else linear.bias.detach().contiguous()
        self.register_buffer("bias", bias, persistent=False)

    @property
    def weight(self) -> Tensor:
        """[out_features, in_features], laid out anew: for modules that multiply by it themselves."""
        order = (0, 2, 4, 1, 3, 5) if self.tiled else (0, 2, 1, 3)
        whole = self.packed.permute(order).reshape(-1, self.inputs)
        return whole[: self.out_features, : self.in_features]

    @property
    def row_dtype(self) -> torch.dtype:
        """The type of the rows that the kernel reads."""
        return self.packed.dtype if self.tiled else torch.float32

    def describe(self, task: NDArray[np.void]) -> None:
        """Fill in this layer's fields of a kernel's TASK."""
        for name, number in (
            ("inputs", self.inputs),
            ("outputs", self.out_features),
            ("element", ELEMENTS[self.packed.dtype]),
            ("tiled", self.tiled),
            ("weight", self.packed.data_ptr()),
            ("following", 0),
            ("bias", 0 if self.bias is None else self.bias.data_ptr()),
        ):
            task[name] = number

    def forward(self, x: Tensor) -> Tensor:
        """x [..., in_features] -> [..., out_features], in the weight's dtype. Raises `ValueError`."""
        if x.shape[-1] != self.in_features or x.dtype != self.packed.dtype or x.device.type != "cpu":
            raise ValueError(
                f"a layer of {self.in_features} inputs in {self.packed.dtype} on the CPU got "
                f"{tuple(x.shape)} in {x.dtype} on {x.device}"
            )
        rows = x.reshape(-1, self.in_features)
        rows = nn.functional.pad(rows, (0, self.inputs - self.in_features)).to(self.row_dtype).contiguous()
        out = x.new_empty(*x.shape[:-1], self.out_features)
        if not len(rows):
            return out
        task = np.zeros((), dtype=kernels.TASK)
        self.describe(task)
        task["rows"] = len(rows)
        task["x"], task["out"] = rows.data_ptr(), out.data_ptr()
        task["configs"], task["threads"] = tile_configs(len(rows)), torch.get_num_threads()
        multiply(task.ctypes.data, torch.get_num_threads())
        return out


def _whole(number: int, part: int) -> int:
    return -(-number // part) * part


def _tiles(weight: Tensor) -> Tensor:
    """[outputs, inputs] -> [blocks, depth, 2 tiles, 16 pairs of inputs, 16 outputs, 2], zeros at the ends."""
    weight = _filled(weight, amx.COLUMNS, amx.DEPTH)
    outputs, inputs = weight.shape
    tiles = weight.view(outputs // amx.COLUMNS, 2, 16, inputs // amx.DEPTH, 16, 2)
    return _aligned(tiles.permute(0, 3, 1, 4, 2, 5))


def _columns(weight: Tensor) -> Tensor:
    """[outputs, inputs] -> [blocks, inputs, outputs of a block], zeros at the ends; bfloat16 in pairs."""
    weight = _filled(weight, amx.COLUMNS, panels.STEP)
    together = 2 if weight.dtype == torch.bfloat16 else 1
    columns = weight.view(-1, amx.COLUMNS, weight.shape[1] // together, together)
    return _aligned(columns.transpose(1, 2))


def _filled(weight: Tensor, outputs: int, inputs: int) -> Tensor:
    """Pad with zeros to multiples of both."""
    missing = [_whole(size, part) - size for size, part in zip(weight.shape, (outputs, inputs), strict=True)]
    return nn.functional.pad(weight, (0, missing[1], 0, missing[0]))


def _aligned(weight: Tensor) -> Tensor:
    """A dense copy that starts on a cache line."""
    room = torch.empty(weight.numel() + 64 // weight.itemsize, dtype=weight.dtype)
    first = -room.data_ptr() % 64 // weight.itemsize
    return room[first : first + weight.numel()].view(weight.shape).copy_(weight)


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


def pack_linears(model: nn.Module) -> bool:
    """Replace every plain `nn.Linear` of `model` in place; whether no other matrix product is left.

    What is left is computed by kernels whose bits may depend on the rows beside a row: routers, experts, and
    quantised layers, which are left to their libraries.
    """
    for module in list(model.modules()):
        children = {name: child for name, child in module.named_children() if _packable(child)}
        for names in SIBLINGS:
            layers = [children[name] for name in names if name in children]
            if len(layers) < len(names) or not _alike(layers):
                continue
            siblings = SiblingLinears(layers)
            for index, name in enumerate(names):
                setattr(module, name, SiblingLinear(siblings, index, children.pop(name)))
        for name, child in children.items():
            setattr(module, name, PackedLinear(child))
    tables = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    left = [weight for weight in model.parameters() if weight.dim() > 1 and id(weight) not in tables]
    return not left and getattr(model, "hf_quantizer", None) is None


def _packable(module: nn.Module) -> TypeGuard[nn.Linear]:
    if type(module) is not nn.Linear:
        return False
    # Some libraries keep the module and quantise its weight: a tensor of their own class.
    plain = type(module.weight.detach()) is Tensor and module.weight.dtype in ELEMENTS
    return plain and (module.bias is None or module.bias.dtype == module.weight.dtype)


def _alike(layers: Sequence[nn.Linear]) -> bool:
    first = layers[0]
    return all(
        layer.in_features == first.in_features
        and layer.weight.dtype == first.weight.dtype
        and (layer.bias is None) == (first.bias is None)
        for layer in layers
    )
