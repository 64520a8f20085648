"""Tiny random models of transformers' architectures, for `paceline bench models` and the engine's tests."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM, PreTrainedConfig

from bench.tiny_sizes import (
    DECODER,
    GPT,
    LINEAR,
    LOCAL_EXPERTS,
    MAMBA,
    MLA,
    NUM_EXPERTS,
    PLAIN,
    ROUTED_EXPERTS,
    SIZES,
    VOCAB,
    WINDOWS,
)

# Context, in positions, of models whose rotation changes with a text's length.
SHORT_CONTEXT = 64


@dataclass(frozen=True, slots=True)
class Family:
    """A tiny model of one architecture."""

    # Of the configuration's class in transformers, without `Config`.
    name: str
    # Its features beside dense layers and attention with rotary positions.
    special: str
    sizes: dict[str, Any]

    def config(self) -> PreTrainedConfig:
        """A fresh configuration."""
        config: PreTrainedConfig = getattr(transformers, f"{self.name}Config")(**self.sizes)
        return config


def _rope(kind: str, original: int, **more: Any) -> dict[str, Any]:
    """Scaled rotation for texts longer than the `original` positions of training."""
    return {"rope_type": kind, "rope_theta": 10000.0, "original_max_position_embeddings": original, **more}


def _family(name: str, special: str, *parts: dict[str, Any], **more: Any) -> Family:
    """`more` and the later `parts` win."""
    sizes: dict[str, Any] = {}
    for part in (*parts, more):
        sizes |= part
    return Family(name, special, sizes)


FAMILIES: dict[str, Family] = {
    "apertus": _family("Apertus", "xIELU, norms of queries and keys", PLAIN),
    "arcee": _family("Arcee", "squared ReLU", SIZES),
    "bamba": _family("Bamba", "Mamba layers", PLAIN, MAMBA, attn_layer_indices=[1]),
    "bart": _family("Bart", "the decoder of an encoder-decoder", DECODER),
    "biogpt": _family("BioGpt", "learned positions", PLAIN),
    "bitnet": _family("BitNet", "norms inside of attention and MLP", PLAIN),
    "bloom": _family(
        "Bloom",
        "ALiBi, attention of its own",
        vocab_size=VOCAB,
        hidden_size=64,
        n_layer=2,
        n_head=4,
        initializer_range=0.2,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=None,
    ),
    "codegen": _family("CodeGen", "attention of its own", GPT, rotary_dim=8),
    "cohere": _family("Cohere", "attention beside the MLP, scaled logits", PLAIN),
    "cohere2": _family("Cohere2", "windows, no positions in full layers", SIZES, WINDOWS),
    "cwm": _family("Cwm", "windows, llama3 rotation", SIZES, WINDOWS, bos_token_id=0),
    "dbrx": _family(
        "Dbrx",
        "experts, clipped queries, keys and values",
        vocab_size=VOCAB,
        d_model=64,
        n_heads=4,
        n_layers=2,
        max_seq_len=1024,
        initializer_range=0.2,
        attn_config={"kv_n_heads": 2, "clip_qkv": 1.0, "rope_theta": 10000.0},
        ffn_config={
            "hidden_size": 64,
            "ffn_hidden_size": 32,
            "ffn_act_fn": {"name": "silu"},
            "moe_num_experts": 4,
            "moe_top_k": 2,
        },
    ),
    "deepseek_v2": _family(
        "DeepseekV2", "MLA: values narrower than keys; experts", PLAIN, MLA, ROUTED_EXPERTS
    ),
    "deepseek_v3": _family(
        "DeepseekV3",
        "MLA, YaRN rotation, experts in groups",
        PLAIN,
        MLA,
        ROUTED_EXPERTS,
        n_group=2,
        topk_group=1,
        rope_parameters=_rope("yarn", 64, factor=16.0, mscale=1.0, mscale_all_dim=1.0),
    ),
    "deepseek_v32": _family(
        "DeepseekV32",
        "MLA over chosen keys, experts",
        PLAIN,
        MLA,
        ROUTED_EXPERTS,
        n_group=2,
        topk_group=1,
        index_topk=16,
        index_head_dim=16,
        index_n_heads=2,
    ),
    "diffllama": _family("DiffLlama", "two attentions a layer, their difference", SIZES),
    "doge": _family("Doge", "masks that depend on the values", PLAIN),
    "dots1": _family("Dots1", "windows, experts", SIZES, WINDOWS, ROUTED_EXPERTS, n_shared_experts=1),
    "ernie4_5": _family("Ernie4_5", "interleaved rotation", SIZES),
    "ernie4_5_moe": _family(
        "Ernie4_5_Moe",
        "experts",
        PLAIN,
        moe_intermediate_size=32,
        moe_num_experts=4,
        moe_k=2,
        moe_num_shared_experts=1,
    ),
    "exaone4": _family("Exaone4", "windows, no positions in full layers", PLAIN, WINDOWS),
    "falcon": _family("Falcon", "one key head, attention of its own", PLAIN, alibi=False),
    "falcon_alibi": _family(
        "Falcon",
        "ALiBi, attention of its own",
        PLAIN,
        alibi=True,
        multi_query=False,
        new_decoder_architecture=False,
    ),
    "falcon_h1": _family("FalconH1", "Mamba beside attention", PLAIN, MAMBA, mamba_d_ssm=128),
    "falcon_mamba": _family(
        "FalconMamba", "Mamba layers alone", vocab_size=VOCAB, hidden_size=64, num_hidden_layers=2
    ),
    "falcon_new": _family(
        "Falcon",
        "grouped heads, attention of its own",
        PLAIN,
        alibi=False,
        new_decoder_architecture=True,
        num_kv_heads=2,
    ),
    "flex_olmo": _family("FlexOlmo", "experts, norms of queries and keys", PLAIN, NUM_EXPERTS),
    "gemma": _family("Gemma", "scaled embeddings", SIZES),
    "gemma2": _family(
        "Gemma2",
        "windows, soft caps of scores and logits",
        SIZES,
        WINDOWS,
        query_pre_attn_scalar=16,
        attn_logit_softcapping=5.0,
    ),
    "gemma3": _family(
        "Gemma3Text",
        "windows with a rotation of their own, norms of queries and keys",
        SIZES,
        WINDOWS,
        query_pre_attn_scalar=16,
    ),
    "gemma3n": _family(
        "Gemma3nText",
        "layers that use the keys and values of others",
        SIZES,
        num_hidden_layers=4,
        sliding_window=24,
        layer_types=["sliding_attention", "full_attention"] * 2,
        num_kv_shared_layers=2,
        vocab_size_per_layer_input=VOCAB,
        hidden_size_per_layer_input=16,
        laurel_rank=8,
        activation_sparsity_pattern=[0.0] * 4,
    ),
    "gemma4": _family(
        "Gemma4Text",
        "windows, layers that use the keys and values of others",
        SIZES,
        num_hidden_layers=4,
        sliding_window=24,
        layer_types=["sliding_attention", "full_attention"] * 2,
        num_kv_shared_layers=2,
        vocab_size_per_layer_input=VOCAB,
        hidden_size_per_layer_input=16,
    ),
    "glm": _family("Glm", "rotation of half a head, interleaved", SIZES),
    "glm4": _family("Glm4", "norms behind attention and MLP", SIZES),
    "glm4_moe": _family("Glm4Moe", "experts", SIZES, ROUTED_EXPERTS, n_shared_experts=1),
    "glm4_moe_lite": _family(
        "Glm4MoeLite",
        "MLA, experts",
        PLAIN,
        MLA,
        ROUTED_EXPERTS,
        n_shared_experts=1,
        mlp_layer_types=["dense", "sparse"],
    ),
    "gpt2": _family("GPT2", "learned positions", GPT),
    "gpt_bigcode": _family("GPTBigCode", "learned positions, one key head", GPT),
    "gpt_neo": _family(
        "GPTNeo",
        "learned positions, windows, attention of its own",
        vocab_size=VOCAB,
        hidden_size=64,
        num_layers=2,
        num_heads=4,
        attention_types=[[["global", "local"], 1]],
        window_size=24,
        max_position_embeddings=1024,
        initializer_range=0.2,
        bos_token_id=None,
        eos_token_id=None,
    ),
    "gpt_neox": _family("GPTNeoX", "rotation of a part of a head", PLAIN),
    "gpt_oss": _family("GptOss", "sinks, windows, experts", SIZES, WINDOWS, LOCAL_EXPERTS),
    "gptj": _family("GPTJ", "attention of its own", GPT, rotary_dim=8),
    "granite": _family(
        "Granite",
        "multipliers",
        PLAIN,
        attention_multiplier=0.5,
        embedding_multiplier=2.0,
        residual_multiplier=0.5,
        logits_scaling=2.0,
    ),
    "granite_swa": _family("GraniteSWA", "windows", PLAIN, WINDOWS, attention_multiplier=0.5),
    "granitemoe": _family("GraniteMoe", "experts", PLAIN, LOCAL_EXPERTS, attention_multiplier=0.5),
    "granitemoehybrid": _family(
        "GraniteMoeHybrid",
        "Mamba layers, experts",
        PLAIN,
        LOCAL_EXPERTS,
        MAMBA,
        shared_intermediate_size=32,
        layer_types=["linear_attention", "full_attention"],
    ),
    "granitemoehybrid_dense": _family(
        "GraniteMoeHybrid",
        "attention alone, as the small Granite 4",
        PLAIN,
        MAMBA,
        num_local_experts=0,
        num_experts_per_tok=0,
        shared_intermediate_size=96,
        attention_multiplier=0.5,
        position_embedding_type="rope",
        layer_types=["full_attention", "full_attention"],
    ),
    "granitemoeshared": _family(
        "GraniteMoeShared",
        "experts",
        PLAIN,
        LOCAL_EXPERTS,
        shared_intermediate_size=32,
        attention_multiplier=0.5,
    ),
    "helium": _family("Helium", "interleaved rotation", SIZES),
    "hunyuan_v1_dense": _family("HunYuanDenseV1", "norms of queries and keys", SIZES),
    "hunyuan_v1_moe": _family(
        "HunYuanMoEV1", "experts, norms of queries and keys", SIZES, num_experts=4, moe_topk=2
    ),
    "jamba": _family(
        "Jamba",
        "Mamba layers, experts",
        PLAIN,
        attn_layer_offset=1,
        attn_layer_period=2,
        num_experts=2,
        use_mamba_kernels=False,
    ),
    "jetmoe": _family("JetMoe", "experts that attend", PLAIN, LOCAL_EXPERTS, kv_channels=16),
    "lfm2": _family("Lfm2", "convolutions", PLAIN, layer_types=["conv", "full_attention"]),
    "llama": _family("Llama", "", SIZES),
    "llama3": _family(
        "Llama",
        "llama3 rotation",
        SIZES,
        rope_parameters=_rope("llama3", 128, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0),
    ),
    "llama4": _family(
        "Llama4Text",
        "chunks, experts",
        SIZES,
        intermediate_size_mlp=96,
        num_local_experts=2,
        attention_chunk_size=16,
        layer_types=["chunked_attention", "full_attention"],
        no_rope_layers=[1, 1],
    ),
    "llama_dynamic": _family(
        "Llama",
        f"dynamic rotation: served for texts of {SHORT_CONTEXT} positions, which it leaves alone",
        SIZES,
        max_position_embeddings=SHORT_CONTEXT,
        rope_parameters={"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0},
    ),
    "llama_mha": _family(
        "Llama", "a key head for each head, wide heads", SIZES, num_key_value_heads=4, head_dim=128
    ),
    "llama_yarn": _family("Llama", "YaRN rotation", SIZES, rope_parameters=_rope("yarn", 256, factor=4.0)),
    "longcat_flash": _family(
        "LongcatFlash",
        "MLA, two attentions a layer, experts",
        PLAIN,
        MLA,
        num_layers=2,
        ffn_hidden_size=96,
        moe_topk=2,
        n_routed_experts=4,
        zero_expert_num=2,
        expert_ffn_hidden_size=32,
        head_dim=8,
    ),
    "mamba": _family("Mamba", "Mamba layers alone", vocab_size=VOCAB, hidden_size=64, num_hidden_layers=2),
    "mamba2": _family(
        "Mamba2",
        "Mamba layers alone",
        vocab_size=VOCAB,
        hidden_size=64,
        num_hidden_layers=2,
        num_heads=4,
        head_dim=32,
        state_size=16,
        n_groups=2,
    ),
    "minicpm3": _family("MiniCPM3", "MLA, scaled embeddings and residuals", PLAIN, MLA),
    "minimax": _family(
        "MiniMax",
        "linear attention, experts",
        SIZES,
        LOCAL_EXPERTS,
        layer_types=["linear_attention", "full_attention"],
    ),
    "minimax_m2": _family("MiniMaxM2", "experts, norms of queries and keys", SIZES, LOCAL_EXPERTS),
    "ministral": _family("Ministral", "windows", SIZES, WINDOWS),
    "ministral3": _family(
        "Ministral3",
        "YaRN rotation, queries scaled by position",
        SIZES,
        rope_parameters=_rope("yarn", 16, factor=64.0, llama_4_scaling_beta=0.1),
    ),
    "mistral": _family("Mistral", "a window in every layer", SIZES, sliding_window=24),
    "mixtral": _family("Mixtral", "experts", SIZES, LOCAL_EXPERTS),
    "mpt": _family(
        "Mpt",
        "ALiBi, attention of its own",
        vocab_size=VOCAB,
        d_model=64,
        n_heads=4,
        n_layers=2,
        initializer_range=0.2,
    ),
    "nanochat": _family("NanoChat", "squared ReLU, capped logits", PLAIN),
    "nemotron": _family("Nemotron", "squared ReLU, rotation of half a head", SIZES),
    "nemotron_h": _family(
        "NemotronH",
        "Mamba layers",
        SIZES,
        layers_block_type=["linear_attention", "full_attention"],
        ssm_state_size=16,
        mamba_num_heads=4,
        mamba_head_dim=32,
        n_groups=2,
        use_mamba_kernels=False,
    ),
    "olmo": _family("Olmo", "norms without weights", PLAIN),
    "olmo2": _family("Olmo2", "norms behind attention and MLP", PLAIN),
    "olmo3": _family("Olmo3", "windows", PLAIN, WINDOWS),
    "olmo_hybrid": _family("OlmoHybrid", "linear attention", PLAIN, LINEAR),
    "olmoe": _family("Olmoe", "experts, norms of queries and keys", PLAIN, NUM_EXPERTS),
    "opt": _family("OPT", "learned positions", PLAIN, ffn_dim=96),
    "persimmon": _family("Persimmon", "rotation of half a head, norms of queries and keys", PLAIN),
    "phi": _family("Phi", "attention beside the MLP, rotation of half a head", PLAIN),
    "phi3": _family("Phi3", "", PLAIN),
    "phi3_longrope": _family(
        "Phi3",
        f"longrope: served for texts of {SHORT_CONTEXT} positions, with its short factors",
        PLAIN,
        original_max_position_embeddings=SHORT_CONTEXT,
        rope_parameters=_rope("longrope", SHORT_CONTEXT, short_factor=[1.0] * 8, long_factor=[4.0] * 8),
    ),
    "phimoe": _family("Phimoe", "experts", PLAIN, LOCAL_EXPERTS),
    "qwen2": _family("Qwen2", "", PLAIN),
    "qwen2_moe": _family(
        "Qwen2Moe",
        "experts",
        PLAIN,
        NUM_EXPERTS,
        moe_intermediate_size=32,
        shared_expert_intermediate_size=32,
    ),
    "qwen3": _family("Qwen3", "norms of queries and keys", SIZES),
    "qwen3_5": _family("Qwen3_5Text", "linear attention", SIZES, LINEAR),
    "qwen3_moe": _family("Qwen3Moe", "experts", SIZES, NUM_EXPERTS, moe_intermediate_size=32),
    "qwen3_next": _family("Qwen3Next", "linear attention, experts", SIZES, LINEAR, NUM_EXPERTS),
    "recurrent_gemma": _family(
        "RecurrentGemma",
        "recurrent layers, windows",
        PLAIN,
        num_hidden_layers=3,
        lru_width=64,
        attention_window_size=24,
        block_types=["recurrent", "recurrent", "attention"],
    ),
    "rwkv": _family("Rwkv", "states alone", vocab_size=VOCAB, hidden_size=64, num_hidden_layers=2),
    "seed_oss": _family("SeedOss", "biases of queries, keys and values", SIZES),
    "smollm3": _family("SmolLM3", "no positions in some layers", PLAIN, no_rope_layers=[1, 0]),
    "stablelm": _family("StableLm", "rotation of a part of a head", PLAIN),
    "starcoder2": _family("Starcoder2", "a window in every layer, biases", PLAIN, sliding_window=24),
    "vaultgemma": _family("VaultGemma", "windows, soft caps", SIZES, WINDOWS),
    "xglm": _family(
        "XGLM",
        "sinusoidal positions, attention of its own",
        vocab_size=VOCAB,
        d_model=64,
        ffn_dim=96,
        num_layers=2,
        attention_heads=4,
        init_std=0.2,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=None,
    ),
    "youtu": _family("Youtu", "MLA", PLAIN, MLA),
    "zamba": _family(
        "Zamba",
        "Mamba layers",
        PLAIN,
        layers_block_type=["linear_attention", "hybrid"],
        use_mamba_kernels=False,
    ),
    "zamba2": _family(
        "Zamba2",
        "Mamba layers",
        PLAIN,
        layers_block_type=["linear_attention", "hybrid"],
        n_mamba_heads=4,
        mamba_d_state=16,
        adapter_rank=8,
        use_mamba_kernels=False,
    ),
}


def make_family_model(path: Path, family: str, *, seed: int = 0) -> Path:
    """A random float32 model of `FAMILIES`, saved in `path` without a tokenizer."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(FAMILIES[family].config()).to(torch.float32).eval()
    model.save_pretrained(path)
    return path
