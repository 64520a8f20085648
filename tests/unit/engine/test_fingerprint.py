"""The fingerprint is of the weights: not of files, of versions, or of where they lie."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from paceline.engine.fingerprint import weights_fingerprint
from tests.tiny import make_tiny_model


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return make_tiny_model(tmp_path / "model")


def test_the_same_weights_in_other_files_have_the_same_fingerprint(model: Path, tmp_path: Path) -> None:
    shards = tmp_path / "shards"
    AutoModelForCausalLM.from_pretrained(model).save_pretrained(shards, max_shard_size="100KB")
    config = json.loads((shards / "config.json").read_text())
    (shards / "config.json").write_text(json.dumps(config | {"transformers_version": "9"}))

    assert len(list(shards.glob("*.safetensors"))) > 1
    assert weights_fingerprint(shards) == weights_fingerprint(model)
    assert len(weights_fingerprint(model)) == 32


def test_other_weights_have_another_fingerprint(model: Path, tmp_path: Path) -> None:
    other = make_tiny_model(tmp_path / "other", seed=1)

    assert weights_fingerprint(other) != weights_fingerprint(model)


def test_a_changed_file_is_hashed_anew(model: Path) -> None:
    before = weights_fingerprint(model)
    assert weights_fingerprint(model) == before
    file = model / "model.safetensors"
    tensors = load_file(file)
    next(iter(tensors.values())).add_(1)
    save_file(tensors, file, metadata={"format": "pt"})

    assert weights_fingerprint(model) != before


def test_a_folder_that_cannot_be_written_to_has_one_too(model: Path) -> None:
    expected = weights_fingerprint(model)
    (model / "paceline-fingerprint.json").unlink()
    (model / "paceline-fingerprint.json").mkdir()

    assert weights_fingerprint(model) == expected


def test_a_folder_without_safetensors_has_none(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no safetensors"):
        weights_fingerprint(tmp_path)
