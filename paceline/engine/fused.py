"""Llama's decoder layer without the overhead of modules: four matrix products and five kernels a layer.

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
from torch import Tensor, nn
from transformers import PreTrainedModel

from paceline.engine.attention import LayerAttention
from paceline.engine.kernels import layers as kernels
from paceline.engine.kernels.vectors import ELEMENTS, LANES
from paceline.engine.linear import PackedLinear, SiblingLinear
from paceline.engine.rows import RaggedBatch
from paceline.engine.team import Kernel

_LAYER = {"self_attn", "mlp", "input_layernorm", "post_attention_layernorm"}
_ATTENTION = {"q_proj", "k_proj", "v_proj", "o_proj"}
_MLP = {"gate_proj", "up_proj", "down_proj", "act_fn"}
# From so many rows on, kernels share them among threads.
_TEAM_ROWS = 2 * kernels.SHARE

_normalize, _rotate, _gate = (
    Kernel(kernel.address) for kernel in (kernels.normalize, kernels.rotate, kernels.gate)
)


@dataclass(frozen=True, slots=True)
class _Norm:
    weight: Tensor
    epsilon: float


@dataclass(frozen=True, slots=True)
class _Layer:
    before_attention: _Norm
    qkv: PackedLinear
    output: PackedLinear
    before_mlp: _Norm
    gate_up: PackedLinear
    down: PackedLinear


class FusedDecoder:
    """The forward of a Llama-like model on the CPU."""

    def __init__(self, model: Any, layers: list[_Layer], norm: _Norm, head: PackedLinear) -> None:
        config = model.config
        self._embed: Callable[[Tensor], Tensor] = model.model.embed_tokens
        self._rotary: Callable[..., tuple[Tensor, Tensor]] = model.model.rotary_emb
        self._layers, self._norm, self._head = layers, norm, head
        self._heads, self._kv_heads = config.num_attention_heads, config.num_key_value_heads
        self._head_dim = layers[0].output.in_features // self._heads
        self._scale: float = model.model.layers[0].self_attn.scaling

    def forward(self, batch: RaggedBatch, attention: LayerAttention) -> Tensor:
        """Logits [logit rows, vocab] in the weights' type; fills the pool through `attention`."""
        residual = self._embed(batch.token_ids)
        run = _Rows(residual)
        cos, sin = (angles[0].contiguous() for angles in self._rotary(residual[None], batch.positions[None]))
        parts = (self._heads, self._kv_heads, self._kv_heads)
        added: Tensor | None = None
        for number, layer in enumerate(self._layers):
            # `forward` itself: nn.Module's call costs a third of what a kernel does.
            qkv = layer.qkv.forward(run.normalize(residual, added, layer.before_attention))
            run.rotate(qkv, cos, sin, heads=self._heads + self._kv_heads)
            by_head = qkv.view(batch.num_rows, -1, self._head_dim).transpose(0, 1)
            query, key, value = by_head.split(parts)
            attended = attention.attend(
                number, query, key, value, scale=self._scale, softcap=None, window=None
            )
            added = layer.output.forward(attended.view(batch.num_rows, -1))
            both = layer.gate_up.forward(run.normalize(residual, added, layer.before_mlp))
            added = layer.down.forward(run.gate(both))
        assert added is not None
        wanted = (residual + added)[batch.logit_rows]
        logits: Tensor = self._head(_Rows(wanted).normalize(wanted, None, self._norm))
        return logits


class _Rows:
    """The kernels of `kernels.layers` for rows of one width."""

    def __init__(self, like: Tensor) -> None:
        self._task = np.zeros((), dtype=kernels.TASK)
        self._task["element"] = ELEMENTS[like.dtype]
        self._task["num_rows"] = rows = like.shape[0]
        self._threads = torch.get_num_threads() if rows >= _TEAM_ROWS else 1
        self._address = self._task.ctypes.data

    def _call(self, kernel: Kernel, **fields: float) -> None:
        task = self._task
        task["next_row"] = 0
        for name, value in fields.items():
            task[name] = value
        kernel(self._address, self._threads)

    def normalize(self, residual: Tensor, added: Tensor | None, norm: _Norm) -> Tensor:
        """Add [rows, width] to the residual, in place, and return its norm."""
        out = torch.empty_like(residual)
        self._call(
            _normalize,
            width=residual.shape[1],
            input=0 if added is None else added.data_ptr(),
            other=norm.weight.data_ptr(),
            rows=residual.data_ptr(),
            out=out.data_ptr(),
            epsilon=norm.epsilon,
        )
        return out

    def rotate(self, rows: Tensor, cos: Tensor, sin: Tensor, *, heads: int) -> None:
        """Rotate the first `heads` heads of each row in place; cos and sin are [rows, head_dim]."""
        self._call(
            _rotate,
            width=cos.shape[1],
            input=cos.data_ptr(),
            other=sin.data_ptr(),
            rows=rows.data_ptr(),
            heads=heads,
            stride=rows.shape[1],
        )

    def gate(self, both: Tensor) -> Tensor:
        """[rows, 2 * width] gates and ups -> [rows, width]."""
        out = both.new_empty(both.shape[0], both.shape[1] // 2)
        self._call(_gate, width=out.shape[1], input=both.data_ptr(), out=out.data_ptr())
        return out


def fuse(model: PreTrainedModel) -> FusedDecoder | None:
    """The fused forward of a model whose linears are packed; None where its modules are not Llama's.

    Whether it computes what they compute, the caller has to try.
    """
    try:
        return _fused(model)
    except (AttributeError, _OtherModel):
        return None


class _OtherModel(Exception):
    """Some part is not as Llama has it."""


def _fused(model: Any) -> FusedDecoder:
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
    return FusedDecoder(model, layers, _norm(model.model.norm), _packed(model.lm_head))


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
        raise _OtherModel
    return module.siblings.product


def _packed(module: nn.Module) -> PackedLinear:
    if not isinstance(module, PackedLinear):
        raise _OtherModel
    return module


def _require(holds: bool) -> None:
    if not holds:
        raise _OtherModel
