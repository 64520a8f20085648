"""Llama's decoder layer without modules: its kernels, of all layers, in one call.

transformers' modules stay the truth: `fuse` takes a model only if its modules have Llama's names and this
forward gives what they give. SmolLM, Llama, Mistral (without a window) and Qwen2 are such models; others
are served by transformers' own forward.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import PreTrainedModel

from paceline.engine.cpu import attention as cpu_attention
from paceline.engine.cpu.attention import KernelAttention
from paceline.engine.cpu.kernels import layers as kernels
from paceline.engine.cpu.kernels import products, sequence
from paceline.engine.cpu.kernels import states as state_kernels
from paceline.engine.cpu.kernels.vectors import ELEMENTS, LANES
from paceline.engine.cpu.linear import PackedLinear, SiblingLinear, multiply
from paceline.engine.cpu.team import Kernel, run_in_order
from paceline.engine.cpu.tiles import tile_configs
from paceline.engine.kv import KVPool
from paceline.engine.rows import RaggedBatch
from paceline.engine.states import StatePool

_LAYER = {"self_attn", "mlp", "input_layernorm", "post_attention_layernorm"}
_ATTENTION = {"q_proj", "k_proj", "v_proj", "o_proj"}
_MLP = {"gate_proj", "up_proj", "down_proj", "act_fn"}

_normalize, _rotate, _gate, _keep = (
    Kernel(kernel.address) for kernel in (kernels.normalize, kernels.rotate, kernels.gate, state_kernels.keep)
)


@dataclass(frozen=True, slots=True)
class _Norm:
    weight: Tensor
    epsilon: float

    def describe(self, task: NDArray[np.void]) -> None:
        """Fill in this norm's fields of a kernel's NORM task."""
        task["weight"], task["epsilon"] = self.weight.data_ptr(), self.epsilon

    def normalize(self, rows: Tensor) -> Tensor:
        """Norms of [rows, width]."""
        out = torch.empty_like(rows)
        task = np.zeros((), dtype=kernels.NORM)
        self.describe(task)
        task["element"], (task["num_rows"], task["width"]) = ELEMENTS[rows.dtype], rows.shape
        task["residual"], task["out"] = rows.data_ptr(), out.data_ptr()
        _normalize(task.ctypes.data)
        return out


@dataclass(frozen=True, slots=True)
class _Layer:
    before_attention: _Norm
    qkv: PackedLinear
    output: PackedLinear
    before_mlp: _Norm
    gate_up: PackedLinear
    down: PackedLinear

    @property
    def norms(self) -> tuple[_Norm, ...]:
        """In the order of their use."""
        return self.before_attention, self.before_mlp

    @property
    def linears(self) -> tuple[PackedLinear, ...]:
        """In the order of their use."""
        return self.qkv, self.output, self.gate_up, self.down


@dataclass(frozen=True, slots=True)
class _Program:
    """Every layer's steps in order; each forward fills the tasks of attention in, and `kept`."""

    # [steps]
    steps: NDArray[np.void]
    # Where attention's are among them. [layers, 2]
    attention: NDArray[np.intp]
    # Tasks of the steps that keep states. [kept layers]
    kept: NDArray[np.void]


class FusedDecoder:
    """The forward of a Llama-like model on the CPU. One at a time."""

    def __init__(
        self,
        model: Any,
        attention: KernelAttention,
        layers: list[_Layer],
        norm: _Norm,
        head: PackedLinear,
    ) -> None:
        self._attention = attention
        config = model.config
        self._embed: Callable[[Tensor], Tensor] = model.model.embed_tokens
        self._rotary: Callable[..., tuple[Tensor, Tensor]] = model.model.rotary_emb
        self._layers, self._norm, self._head = layers, norm, head
        self._heads, self._kv_heads = config.num_attention_heads, config.num_key_value_heads
        self._head_dim = layers[0].output.in_features // self._heads
        self._scale: float = model.model.layers[0].self_attn.scaling
        self._width, self._inner = config.hidden_size, config.intermediate_size
        element = ELEMENTS[model.dtype]
        count = len(layers)
        self._norms = np.zeros((count, 2), dtype=kernels.NORM)
        self._rotations = np.zeros(count, dtype=kernels.ROTATION)
        self._gates = np.zeros(count, dtype=kernels.GATE)
        self._products = np.zeros((count, 4), dtype=products.TASK)
        for tasks, width in (
            (self._norms, self._width),
            (self._rotations, self._head_dim),
            (self._gates, self._inner),
        ):
            tasks["element"], tasks["width"] = element, width
        # What products read is written as they read it.
        for tasks in (self._norms, self._gates):
            tasks["wide"] = layers[0].qkv.row_dtype is torch.float32
        self._rotations["heads"] = self._heads + self._kv_heads
        self._rotations["row_stride"] = layers[0].qkv.out_features
        for number, layer in enumerate(layers):
            for task, part in zip(self._norms[number], layer.norms, strict=True):
                part.describe(task)
            for task, linear in zip(self._products[number], layer.linears, strict=True):
                linear.describe(task)
        weights = [*self._products["weight"].flat, head.packed.data_ptr()]
        self._products["following"] = np.reshape(weights[1:], self._products.shape)
        # By the numbers of the layers whose states are kept.
        self._programs: dict[tuple[int, ...], _Program] = {}

    def _program(self, kept: tuple[int, ...]) -> _Program:
        """With a step for each kept layer behind the sum that the layer after it begins by."""
        if kept in self._programs:
            return self._programs[kept]
        norms, linears = self._norms, self._products
        none = np.zeros(len(self._layers), dtype=np.int64)
        order: tuple[tuple[Kernel, NDArray[np.int64]], ...] = (
            (_normalize, _addresses(norms[:, 0])),
            (multiply, _addresses(linears[:, 0])),
            (_rotate, _addresses(self._rotations)),
            (cpu_attention.write_rows, none),
            (cpu_attention.attend, none),
            (multiply, _addresses(linears[:, 1])),
            (_normalize, _addresses(norms[:, 1])),
            (multiply, _addresses(linears[:, 2])),
            (_gate, _addresses(self._gates)),
            (multiply, _addresses(linears[:, 3])),
        )
        steps = np.zeros((len(self._layers), len(order)), dtype=sequence.STEP)
        for number, (kernel, tasks) in enumerate(order):
            steps["kernel"][:, number], steps["task"][:, number] = kernel.address, tasks
        keeping = np.zeros(len(kept), dtype=state_kernels.TASK)
        keeping["element"], keeping["width"] = norms["element"][0, 0], self._width
        more = np.zeros(len(kept), dtype=sequence.STEP)
        more["kernel"], more["task"] = _keep.address, _addresses(keeping)
        places = [min(number * len(order) + 1, steps.size) for number in kept]
        program = np.insert(steps.reshape(-1), places, more)
        attending = [kernel.address for kernel in (cpu_attention.write_rows, cpu_attention.attend)]
        attention = np.flatnonzero(np.isin(program["kernel"], attending)).reshape(-1, len(attending))
        self._programs[kept] = _Program(program, attention, keeping)
        return self._programs[kept]

    def forward(self, batch: RaggedBatch, pool: KVPool, states: StatePool | None) -> Tensor:
        """Logits [logit rows, vocab] in the weights' type; fills both pools."""
        program = self._program(states.layers if states is not None else ())
        rows = batch.num_rows
        residual = self._embed(batch.token_ids)
        cos, sin = (angles[0].contiguous() for angles in self._rotary(residual[None], batch.positions[None]))
        heads, kv_heads = self._heads, self._kv_heads
        operand = self._layers[0].qkv.row_dtype
        normed, added = torch.empty_like(residual, dtype=operand), torch.empty_like(residual)
        qkv = residual.new_empty(rows, heads + 2 * kv_heads, self._head_dim)
        attended = residual.new_empty(rows, heads * self._head_dim, dtype=operand)
        both = residual.new_empty(rows, 2 * self._inner)
        gated = residual.new_empty(rows, self._inner, dtype=operand)
        threads = torch.get_num_threads()

        for tasks in (self._norms, self._rotations, self._gates):
            tasks["next_row"], tasks["num_rows"] = 0, rows
        self._norms["residual"], self._norms["added"] = residual.data_ptr(), added.data_ptr()
        self._norms["added"][0, 0] = 0
        self._norms["out"] = normed.data_ptr()
        self._rotations["rows"] = qkv.data_ptr()
        self._rotations["cosines"], self._rotations["sines"] = cos.data_ptr(), sin.data_ptr()
        self._gates["both"], self._gates["out"] = both.data_ptr(), gated.data_ptr()
        self._products["next_block"], self._products["rows"] = 0, rows
        self._products["configs"], self._products["threads"] = tile_configs(rows), threads
        self._products["x"] = [tensor.data_ptr() for tensor in (normed, attended, normed, gated)]
        self._products["out"] = [tensor.data_ptr() for tensor in (qkv, added, both, added)]
        query, key, value = qkv.transpose(0, 1).split((heads, kv_heads, kv_heads))
        attention = self._attention.begin(batch, pool)
        layer_tasks = attention.layer_tasks(query, key, value, attended, scale=self._scale)
        program.steps["task"][program.attention] = _addresses(layer_tasks)[:, None]
        if states is not None:
            kept = program.kept
            kept["next_row"], kept["num_rows"] = 0, rows
            kept["residual"], kept["slots"] = residual.data_ptr(), batch.slots.data_ptr()
            # Nothing sums up behind the last layer.
            last = [number == len(self._layers) for number in states.layers]
            kept["added"] = np.where(last, added.data_ptr(), 0)
            kept["out"] = states.states.data_ptr() + np.arange(len(kept)) * states.states[0].nbytes
        run_in_order(program.steps, threads)

        wanted = (residual + added)[batch.logit_rows]
        logits: Tensor = self._head(self._norm.normalize(wanted))
        return logits


def _addresses(tasks: NDArray[np.void]) -> NDArray[np.int64]:
    """The address of each task in an array of tasks."""
    return np.asarray(tasks.ctypes.data + np.arange(len(tasks)) * tasks.strides[0])


def fuse(model: PreTrainedModel, attention: KernelAttention) -> FusedDecoder | None:
    """The fused forward of a model whose linears are packed; None where its modules are not Llama's.

    The caller has to check that it computes what the modules compute.
    """
    try:
        return _fused(model, attention)
    except (AttributeError, _OtherModelError):
        return None


class _OtherModelError(Exception):
    """Some part of the model is not as in Llama."""


def _fused(model: Any, attention: KernelAttention) -> FusedDecoder:
    config = model.config
    windows = set(getattr(config, "layer_types", None) or ["full_attention"]) != {"full_attention"}
    _require(not windows and model.dtype in ELEMENTS and config.hidden_act == "silu")
    layers = [_layer(module) for module in model.model.layers]
    _require(all(getattr(module.self_attn, "sliding_window", None) is None for module in model.model.layers))
    _require(getattr(config, "sliding_window", None) is None or bool(getattr(config, "layer_types", None)))
    head_dim, odd = divmod(layers[0].output.in_features, config.num_attention_heads)
    # Kernels work in whole vectors, rotation in whole halves of heads.
    widths = (config.hidden_size, config.intermediate_size, head_dim // 2)
    _require(not odd and all(width % LANES == 0 for width in widths))
    linears = [linear for layer in layers for linear in layer.linears]
    _require(all(linear.inputs == linear.in_features for linear in linears))
    norms = [_norm(model.model.norm)]
    norms += [norm for layer in layers for norm in layer.norms]
    _require(all(norm.weight.dtype == model.dtype for norm in norms))
    return FusedDecoder(model, attention, layers, norms[0], _packed(model.lm_head))


def _layer(module: Any) -> _Layer:
    attention, mlp = module.self_attn, module.mlp
    for part, names in ((module, _LAYER), (attention, _ATTENTION), (mlp, _MLP)):
        _require({name for name, _ in part.named_children()} == names)
    return _Layer(
        _norm(module.input_layernorm),
        _siblings(attention.q_proj),
        _packed(attention.o_proj),
        _norm(module.post_attention_layernorm),
        _siblings(mlp.gate_proj),
        _packed(mlp.down_proj),
    )


def _norm(module: Any) -> _Norm:
    return _Norm(module.weight.detach().contiguous(), float(module.variance_epsilon))


def _siblings(module: nn.Module) -> PackedLinear:
    if not isinstance(module, SiblingLinear):
        raise _OtherModelError
    return module.siblings.product


def _packed(module: nn.Module) -> PackedLinear:
    if not isinstance(module, PackedLinear):
        raise _OtherModelError
    return module


def _require(holds: bool) -> None:
    if not holds:
        raise _OtherModelError
