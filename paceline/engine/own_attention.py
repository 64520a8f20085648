"""Older architectures that compute attention in their modules, redirected to the engine's attention.

Newer ones ask `transformers.AttentionInterface` for the function to attend with. These compute scores and
softmax in their own `forward`; here the same parts surround `ragged_attention` instead.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from transformers.models.bloom import modeling_bloom
from transformers.models.falcon import modeling_falcon

from paceline.engine.attention import ragged_attention

# Model types that are loaded with attention of their own, which `adopt` replaces.
OWN_ATTENTION = frozenset({"bloom", "codegen", "falcon", "gpt_neo", "gptj", "mpt", "xglm"})


def adopt(model: nn.Module, context: int) -> None:
    """Let the modules of an `OWN_ATTENTION` model attend by `ragged_attention`, over `context` positions."""
    for module in model.modules():
        adopting = _ADOPTING.get(type(module).__name__)
        if adopting is not None:
            adopting(module, context)


def _inner(scale: Callable[[Any], float], window: Callable[[Any], int | None]) -> Callable[[Any, int], None]:
    """For modules with a method `_attn` for scores, softmax and values."""

    def adopting(module: Any, context: int) -> None:
        def attend(
            self: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None = None
        ) -> tuple[Tensor, None]:
            attended, _ = ragged_attention(
                self, query, key, value, scaling=scale(self), sliding_window=window(self)
            )
            return attended.transpose(1, 2).to(value.dtype), None

        module._attn = MethodType(attend, module)

    return adopting


def _bloom(module: Any, context: int) -> None:
    def forward(self: Any, hidden_states: Tensor, residual: Tensor, **unused: object) -> tuple[Tensor, None]:
        query, key, value = self._reshape(self.query_key_value(hidden_states))
        attended, _ = ragged_attention(
            self, query, key, value, scaling=self.inv_norm_factor, key_bias=self.key_bias
        )
        return self.dense(attended.flatten(2)) + residual, None

    every = torch.ones(1, context, device=module.dense.weight.device)
    bias = modeling_bloom.build_alibi_tensor(every, module.num_heads, module.dense.weight.dtype)
    module.key_bias = bias[:, 0].float()
    module.forward = MethodType(forward, module)


def _falcon(module: Any, context: int) -> None:
    def forward(
        self: Any,
        hidden_states: Tensor,
        alibi: Tensor | None,
        attention_mask: Tensor | None,
        position_embeddings: tuple[Tensor, Tensor] | None = None,
        **unused: object,
    ) -> tuple[Tensor, None]:
        query, key, value = self._split_heads(self.query_key_value(hidden_states))
        # It repeats the heads of the newer models for each query head.
        step = key.shape[2] // self.num_kv_heads
        query, key, value = (
            heads.transpose(1, 2) for heads in (query, key[:, :, ::step], value[:, :, ::step])
        )
        if position_embeddings is not None and alibi is None:
            query, key = modeling_falcon.apply_rotary_pos_emb(query, key, *position_embeddings)
        attended, _ = ragged_attention(
            self, query, key, value, scaling=self.inv_norm_factor, key_bias=self.key_bias
        )
        return self.dense(attended.flatten(2)), None

    module.key_bias = None
    if module.config.alibi:
        every = torch.ones(1, context, dtype=torch.long, device=module.dense.weight.device)
        bias = modeling_falcon.build_alibi_tensor(every, module.num_heads, module.dense.weight.dtype)
        module.key_bias = bias[:, 0].float() / math.sqrt(module.head_dim)
    module.forward = MethodType(forward, module)


def _mpt(module: Any, context: int) -> None:
    def forward(
        self: Any, hidden_states: Tensor, position_bias: Tensor, **unused: Any
    ) -> tuple[Tensor, None]:
        mixed = self.Wqkv(hidden_states)
        if self.clip_qkv:
            mixed = mixed.clamp(min=-self.clip_qkv, max=self.clip_qkv)
        query, key, value = (
            rows.unflatten(2, (self.n_heads, self.head_dim)).transpose(1, 2) for rows in mixed.chunk(3, dim=2)
        )
        attended, _ = ragged_attention(
            self, query, key, value, scaling=self.softmax_scale, key_bias=position_bias[:, 0].float()
        )
        return self.out_proj(attended.flatten(2)), None

    module.forward = MethodType(forward, module)


def _xglm(module: Any, context: int) -> None:
    def forward(self: Any, hidden_states: Tensor, **unused: object) -> tuple[Tensor, None]:
        query, key, value = (
            part(hidden_states).unflatten(2, (self.num_heads, self.head_dim)).transpose(1, 2)
            for part in (self.q_proj, self.k_proj, self.v_proj)
        )
        attended, _ = ragged_attention(self, query, key, value, scaling=self.scaling)
        return self.out_proj(attended.flatten(2)), None

    module.forward = MethodType(forward, module)


_ADOPTING: dict[str, Callable[[Any, int], None]] = {
    "BloomAttention": _bloom,
    "CodeGenAttention": _inner(lambda module: 1 / module.scale_attn, lambda module: None),
    "FalconAttention": _falcon,
    "GPTJAttention": _inner(lambda module: 1 / module.scale_attn, lambda module: None),
    "GPTNeoSelfAttention": _inner(
        lambda module: 1.0,
        lambda module: module.config.window_size if module.attention_type == "local" else None,
    ),
    "MptAttention": _mpt,
    "XGLMAttention": _xglm,
}
