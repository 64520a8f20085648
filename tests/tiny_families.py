"""Tiny random models of several architectures, to see that the engine serves them as transformers does."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    MixtralConfig,
    PreTrainedConfig,
    Qwen2Config,
    Qwen3Config,
)

VOCAB = 128
_SIZES: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 1024,
    "initializer_range": 0.2,
    "tie_word_embeddings": False,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}

FAMILIES: dict[str, Callable[[], PreTrainedConfig]] = {
    "llama": lambda: LlamaConfig(**_SIZES),
    # One query head per key head, wide heads: other shapes of the attention products.
    "llama_mha": lambda: LlamaConfig(**{**_SIZES, "num_key_value_heads": 4, "head_dim": 128}),
    # Without head_dim: that of Qwen2 is always hidden / heads.
    "qwen2": lambda: Qwen2Config(**{key: size for key, size in _SIZES.items() if key != "head_dim"}),
    "qwen3": lambda: Qwen3Config(**_SIZES),
    # A window shorter than the texts of the tests, every other layer.
    "gemma3": lambda: Gemma3TextConfig(
        **_SIZES,
        sliding_window=24,
        query_pre_attn_scalar=16,
        layer_types=["sliding_attention", "full_attention"],
    ),
    "mixtral": lambda: MixtralConfig(**_SIZES, num_local_experts=4, num_experts_per_tok=2),
}


def make_family_model(path: Path, family: str, *, seed: int = 0) -> Path:
    """A random float32 model of one of `FAMILIES`, saved in `path` without a tokenizer."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(FAMILIES[family]()).to(torch.float32).eval()
    model.save_pretrained(path)
    return path
