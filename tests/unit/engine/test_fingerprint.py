"""A model's fingerprint is that of its weights, however they are stored, and is computed once."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from bench.families import make_family_model
from paceline.engine import fingerprint
from paceline.engine.fingerprint import weights_fingerprint
from paceline.engine.loading import ModelError


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return make_family_model(tmp_path / "model", "llama")


def _without_cache(folder: Path, name: str) -> Path:
    """A copy as a model comes to another machine."""
    copy = folder.parent / name
    shutil.copytree(folder, copy, ignore=shutil.ignore_patterns("paceline-*"))
    return copy


def test_it_is_the_weights_own_however_they_are_stored(folder: Path) -> None:
    expected = weights_fingerprint(folder)
    assert len(expected) == 32
    int(expected, 16)
    divided = folder.parent / "divided"
    AutoModelForCausalLM.from_pretrained(folder).save_pretrained(divided, max_shard_size="100KB")
    assert len(list(divided.glob("*.safetensors"))) > 1
    assert weights_fingerprint(divided) == expected
    # What a later version of transformers may write beside what there is.
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"transformers_version": "9.0", "new": False}))
    assert weights_fingerprint(folder) == expected


def test_other_weights_have_another(folder: Path) -> None:
    expected = weights_fingerprint(folder)
    other = _without_cache(folder, "other")
    weights = load_file(other / "model.safetensors")
    name = sorted(weights)[-1]
    weights[name].view(-1)[-1] += 1
    save_file(weights, other / "model.safetensors")
    assert weights_fingerprint(other) != expected
    weights[name].view(-1)[-1] -= 1
    weights = {name: tensor.to(torch.bfloat16) for name, tensor in weights.items()}
    save_file(weights, other / "model.safetensors")
    assert weights_fingerprint(other) != expected


@pytest.mark.parametrize("writable", [True, False], ids=["beside the weights", "in the user's cache"])
def test_weights_are_hashed_once(folder: Path, writable: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not writable:
        # Stands where the file would be: not even root can write it.
        (folder / "paceline-fingerprint.json").mkdir()
    expected = weights_fingerprint(folder)
    read: list[Sequence[Path]] = []
    tensors = fingerprint._tensors

    def watched(files: Sequence[Path]) -> Iterator[bytes | memoryview]:
        read.append(files)
        return tensors(files)

    monkeypatch.setattr(fingerprint, "_tensors", watched)
    assert weights_fingerprint(folder) == expected
    assert not read
    assert not list(folder.glob(".paceline-*"))
    weights = load_file(folder / "model.safetensors")
    save_file({name: tensor + 1 for name, tensor in weights.items()}, folder / "model.safetensors")
    assert weights_fingerprint(folder) != expected
    assert read


def test_a_folder_without_weights_has_none(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="holds no safetensors"):
        weights_fingerprint(tmp_path)
    with pytest.raises(ModelError, match="not on this machine"):
        weights_fingerprint("nobody/knows-this-model")
