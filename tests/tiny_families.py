"""Tiny random models of several architectures, to see that the engine serves them as transformers does."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM, PreTrainedConfig

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

# Without head_dim: that of these is always hidden / heads.
_PLAIN: dict[str, Any] = {key: size for key, size in _SIZES.items() if key != "head_dim"}
# As GPT-2 and its like call them.
_GPT: dict[str, Any] = {
    "vocab_size": VOCAB,
    "n_embd": 64,
    "n_inner": 96,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 1024,
    "initializer_range": 0.2,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
# A window shorter than the texts of the tests, every other layer.
_WINDOWS: dict[str, Any] = {
    "sliding_window": 24,
    "layer_types": ["sliding_attention", "full_attention"],
}
_MLA: dict[str, Any] = {
    "q_lora_rank": 32,
    "kv_lora_rank": 32,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 12,
}
_EXPERTS: dict[str, Any] = {
    "moe_intermediate_size": 32,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "first_k_dense_replace": 1,
}


def _config(name: str, **sizes: Any) -> Callable[[], PreTrainedConfig]:
    """A family's configuration, by the name of its class in transformers."""
    return lambda: getattr(transformers, f"{name}Config")(**sizes)


FAMILIES: dict[str, Callable[[], PreTrainedConfig]] = {
    "llama": _config("Llama", **_SIZES),
    # One query head per key head, wide heads: other shapes of the attention products.
    "llama_mha": _config("Llama", **{**_SIZES, "num_key_value_heads": 4, "head_dim": 128}),
    "qwen2": _config("Qwen2", **_PLAIN),
    "qwen3": _config("Qwen3", **_SIZES),
    "gemma3": _config("Gemma3Text", **_SIZES, **_WINDOWS, query_pre_attn_scalar=16),
    "mixtral": _config("Mixtral", **_SIZES, num_local_experts=4, num_experts_per_tok=2),
    # Attention that asks for more than a scale.
    "gemma2": _config("Gemma2", **_SIZES, **_WINDOWS, query_pre_attn_scalar=16, attn_logit_softcapping=5.0),
    "gpt_oss": _config("GptOss", **_SIZES, **_WINDOWS, num_local_experts=4, num_experts_per_tok=2),
    "granite_swa": _config("GraniteSWA", **_PLAIN, **_WINDOWS, attention_multiplier=0.5),
    "llama4": _config(
        "Llama4Text",
        **_SIZES,
        intermediate_size_mlp=96,
        num_local_experts=2,
        attention_chunk_size=16,
        layer_types=["chunked_attention", "full_attention"],
        no_rope_layers=[1, 1],
    ),
    "diffllama": _config("DiffLlama", **_SIZES),
    # Keys and values of unlike widths.
    "deepseek_v2": _config("DeepseekV2", **{**_PLAIN, "num_key_value_heads": 4}, **_MLA, **_EXPERTS),
    "deepseek_v3": _config(
        "DeepseekV3", **{**_PLAIN, "num_key_value_heads": 4}, **_MLA, **_EXPERTS, n_group=2, topk_group=1
    ),
    "minicpm3": _config("MiniCPM3", **{**_PLAIN, "num_key_value_heads": 4}, **_MLA),
    # Biases by distance in place of positions.
    "bloom": _config(
        "Bloom",
        vocab_size=VOCAB,
        hidden_size=64,
        n_layer=2,
        n_head=4,
        initializer_range=0.2,
        tie_word_embeddings=False,
    ),
    "mpt": _config("Mpt", vocab_size=VOCAB, d_model=64, n_heads=4, n_layers=2, initializer_range=0.2),
    "falcon_alibi": _config(
        "Falcon", **_PLAIN, alibi=True, multi_query=False, new_decoder_architecture=False
    ),
    # Attention of their own.
    "falcon": _config("Falcon", **_PLAIN, alibi=False),
    "falcon_new": _config("Falcon", **_PLAIN, alibi=False, new_decoder_architecture=True, num_kv_heads=2),
    "gptj": _config("GPTJ", **_GPT, rotary_dim=8),
    "codegen": _config("CodeGen", **_GPT, rotary_dim=8),
    "gpt_neo": _config(
        "GPTNeo",
        vocab_size=VOCAB,
        hidden_size=64,
        num_layers=2,
        num_heads=4,
        attention_types=[[["global", "local"], 1]],
        window_size=24,
        max_position_embeddings=1024,
        initializer_range=0.2,
    ),
    "xglm": _config(
        "XGLM",
        vocab_size=VOCAB,
        d_model=64,
        ffn_dim=96,
        num_layers=2,
        attention_heads=4,
        init_std=0.2,
        tie_word_embeddings=False,
    ),
    # Others, each with something of its own around attention.
    "stablelm": _config("StableLm", **_PLAIN),
    "nemotron": _config("Nemotron", **_SIZES),
    "phi3": _config("Phi3", **_PLAIN),
    "cohere": _config("Cohere", **_PLAIN),
    "olmo2": _config("Olmo2", **_PLAIN),
    "gpt2": _config("GPT2", **_GPT),
    "gpt_bigcode": _config("GPTBigCode", **_GPT),
    "gpt_neox": _config("GPTNeoX", **_PLAIN),
    "opt": _config("OPT", **_PLAIN, ffn_dim=96),
}

# Models that the engine refuses, or serves in part: `tests/unit/engine/test_shape.py`.
OTHERS: dict[str, Callable[[], PreTrainedConfig]] = {
    "llama_dynamic": _config(
        "Llama",
        **{**_SIZES, "max_position_embeddings": 32},
        rope_parameters={"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0},
    ),
    "phi3_longrope": _config(
        "Phi3",
        **_PLAIN,
        original_max_position_embeddings=32,
        rope_parameters={
            "rope_type": "longrope",
            "rope_theta": 10000.0,
            "short_factor": [1.0] * 8,
            "long_factor": [4.0] * 8,
            "original_max_position_embeddings": 32,
        },
    ),
    "mamba": _config("Mamba", vocab_size=VOCAB, hidden_size=64, num_hidden_layers=2),
    "lfm2": _config("Lfm2", **_PLAIN, layer_types=["conv", "full_attention"]),
    "qwen3_next": _config(
        "Qwen3Next",
        **_SIZES,
        layer_types=["linear_attention", "full_attention"],
        num_experts=2,
        num_experts_per_tok=1,
    ),
    "jamba": _config(
        "Jamba", **_PLAIN, attn_layer_offset=1, attn_layer_period=2, num_experts=2, use_mamba_kernels=False
    ),
}


def make_family_model(path: Path, family: str, *, seed: int = 0) -> Path:
    """A random float32 model of `FAMILIES` or `OTHERS`, saved in `path` without a tokenizer."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config((FAMILIES | OTHERS)[family]()).to(torch.float32).eval()
    model.save_pretrained(path)
    return path
