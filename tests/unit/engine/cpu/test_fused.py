"""The fused forward serves Llama's kind of model only, and gives what transformers' modules give."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, MistralConfig, Qwen2Config

from bench.engine_loop import loaded
from bench.families import make_family_model
from paceline.engine.attention import NAME
from paceline.engine.model import Decoder, load_weights
from paceline.engine.own_logits import OwnLogits
from paceline.engine.rows import Segment

CPU = torch.device("cpu")
TOKENS = [5, 99, 3, 120, 64, 7, 7, 31, 80]


def _logits(decoder: Decoder) -> Tensor:
    pool = decoder.kv_pool(2)
    first = decoder.batch([Segment(TOKENS[:4], 0, (1,), wants_logits=False), Segment([1] * 40, 0, (0,))])
    decoder.forward(first, pool)
    tree = Segment(TOKENS[4:6], 4, (1,), TOKENS[6:], (-1, 0, -1))
    return decoder.forward(decoder.batch([tree]), pool)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_gives_the_logits_of_the_modules(dtype: torch.dtype, tmp_path: Path) -> None:
    with loaded(make_family_model(tmp_path, "llama_mha"), dtype) as decoder:
        assert decoder.fused
        fused = _logits(decoder)
        decoder._fused = None
        expected = _logits(decoder)
    tolerance = 1e-5 if dtype is torch.float32 else 2e-2
    assert float((fused - expected).norm() / expected.norm()) < tolerance


@pytest.mark.parametrize("family", ["qwen3", "gemma3", "mixtral"])
def test_leaves_other_models_to_transformers(family: str, tmp_path: Path) -> None:
    with loaded(make_family_model(tmp_path, family)) as decoder:
        assert not decoder.fused


@pytest.mark.parametrize(("window", "fused"), [(None, True), (8, False)])
@pytest.mark.parametrize("config", [MistralConfig, Qwen2Config])
def test_a_sliding_window_is_left_to_transformers(
    config: type[MistralConfig | Qwen2Config], window: int | None, fused: bool, tmp_path: Path
) -> None:
    sizes: dict[str, Any] = {
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "vocab_size": 128,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "sliding_window": window,
        "use_sliding_window": window is not None,
        "max_window_layers": 1,
    }
    AutoModelForCausalLM.from_config(config(**sizes)).save_pretrained(tmp_path)
    with loaded(tmp_path) as decoder:
        assert decoder.fused is fused


def test_a_model_that_only_looks_like_llama_is_noticed(tmp_path: Path) -> None:
    """Same modules, other arithmetic: what the fused forward does not know of must show in the logits."""
    model, shape, _ = load_weights(make_family_model(tmp_path, "llama_mha"), device=CPU, dtype=torch.float32)
    model.model.layers[0].mlp.register_forward_hook(lambda module, args, out: out * 0.5)
    model.set_attn_implementation("eager")
    own = OwnLogits.of(model, context=shape.max_context)
    model.set_attn_implementation(NAME)
    decoder = Decoder(model, shape, CPU)
    decoder.verify(own)
    assert not decoder.fused
