"""Quantised checkpoints are transformers' and their library's business, and are served as they come."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torchao.quantization import Int8WeightOnlyConfig
from transformers import AutoModelForCausalLM, TorchAoConfig

from bench.engine_loop import loaded
from bench.families import make_family_model
from paceline.engine.model import Decoder
from paceline.engine.rows import Segment

TOKENS = [5, 99, 3, 120, 64, 7, 7, 31, 80]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with int8 weights, as a user would download one."""
    plain = make_family_model(tmp_path_factory.mktemp("plain"), "llama_mha")
    model = AutoModelForCausalLM.from_pretrained(
        plain, dtype=torch.bfloat16, quantization_config=TorchAoConfig(Int8WeightOnlyConfig())
    )
    path = tmp_path_factory.mktemp("int8")
    model.save_pretrained(path)
    return path


def test_gives_the_logits_that_transformers_gives(folder: Path) -> None:
    reference = AutoModelForCausalLM.from_pretrained(folder)
    with torch.inference_mode():
        expected = reference(torch.tensor([TOKENS])).logits[0].float()
    with loaded(folder) as decoder:
        assert type(decoder.model.model.layers[0].mlp.up_proj.weight.detach()) is not torch.Tensor
        got = _logits(decoder)
    assert float((got - expected[3:6]).norm() / expected[3:6].norm()) < 0.02


def _logits(decoder: Decoder) -> torch.Tensor:
    """Of positions 3 to 5: the root and a chain of two nodes behind it."""
    pool = decoder.kv_pool(2)
    prompt = Segment(TOKENS[:3], 0, (1,), wants_logits=False)
    decoder.forward(decoder.batch([prompt, Segment([1] * 40, 0, (0,))]), pool)
    tree = Segment(TOKENS[3:4], 3, (1,), TOKENS[4:6], (-1, 0))
    return decoder.forward(decoder.batch([tree]), pool).float()


@pytest.mark.parametrize(("family", "exact"), [("llama", True), ("gemma3", True), ("mixtral", False)])
def test_exactness_is_claimed_where_all_products_are_our_own(
    family: str, exact: bool, tmp_path: Path
) -> None:
    """An expert's products have as many rows as were routed to it."""
    with loaded(make_family_model(tmp_path, family)) as decoder:
        assert decoder.exact is exact


def test_exactness_is_not_claimed_of_a_librarys_kernels(folder: Path) -> None:
    with loaded(folder) as decoder:
        assert not decoder.exact
        assert not decoder.fused
