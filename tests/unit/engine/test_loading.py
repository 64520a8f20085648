"""Weights are loaded whole or not at all; what is wrong with them is said with names, in one line."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from bench.families import make_family_model
from paceline.engine.loading import ModelError
from paceline.engine.model import load_weights

CPU = torch.device("cpu")
Weights = dict[str, Tensor]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_family_model(tmp_path_factory.mktemp("whole"), "llama")


def _changed(whole: Path, folder: Path, change: Callable[[Weights], object]) -> Path:
    shutil.copytree(whole, folder)
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def _refusal(folder: Path) -> str:
    with pytest.raises(ModelError) as refused:
        load_weights(folder, device=CPU, dtype=None)
    assert "\n" not in str(refused.value)
    return str(refused.value)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda weights: weights.pop("lm_head.weight"), "lacks lm_head.weight"),
        (lambda weights: weights.update(surplus=torch.zeros(3)), "beyond the model surplus"),
        (
            lambda weights: weights.update({"lm_head.weight": torch.zeros(128, 32)}),
            "has in another size lm_head",
        ),
    ],
    ids=["missing", "unexpected", "of another size"],
)
def test_weights_that_are_not_the_models_are_named(
    change: Callable[[Weights], object], said: str, whole: Path, tmp_path: Path
) -> None:
    assert said in _refusal(_changed(whole, tmp_path / "changed", change))


def test_a_tied_output_layer_may_be_missing(whole: Path, tmp_path: Path) -> None:
    folder = _changed(whole, tmp_path / "tied", lambda weights: weights.pop("lm_head.weight"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": True}))
    load_weights(folder, device=CPU, dtype=None)


def test_what_older_versions_saved_beside_weights_does_not_matter(whole: Path, tmp_path: Path) -> None:
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    load_weights(
        _changed(whole, tmp_path / "old", lambda weights: weights.update({name: torch.zeros(8)})),
        device=CPU,
        dtype=None,
    )


@pytest.mark.parametrize("size", [0, 5, 1000])
def test_a_file_that_is_cut_is_fetched_again(size: int, whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "cut"
    shutil.copytree(whole, folder)
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[: size or -100])
    assert "fetch the model again" in _refusal(folder)
