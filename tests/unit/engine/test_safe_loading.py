"""A model is data: neither its weights' file nor Python beside it is run, unless that is asked for."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import torch

from gateway.prompt import Prompts
from paceline.engine.loading import ModelError
from paceline.engine.model import load_weights

CPU = torch.device("cpu")
# What a model's author could run here, kept to writing a file.
CODE = """
from pathlib import Path
from transformers import LlamaConfig, LlamaForCausalLM

Path({marker!r}).touch()


class OwnConfig(LlamaConfig):
    model_type = "own"


class OwnModel(LlamaForCausalLM):
    config_class = OwnConfig
"""


class Malicious:
    def __init__(self, marker: Path) -> None:
        self._marker = marker

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self._marker),)


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    return tmp_path / "was-run"


def test_a_pickled_checkpoint_is_refused_unread(tiny_model: Path, tmp_path: Path, marker: Path) -> None:
    folder = tmp_path / "pickled"
    shutil.copytree(tiny_model, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    torch.save({"lm_head.weight": Malicious(marker)}, folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"cannot load .*safetensors"):
        load_weights(folder, device=CPU, dtype=None)
    assert not marker.exists()


@pytest.fixture
def with_code(tiny_model: Path, tmp_path: Path, marker: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    folder = tmp_path / "coded"
    shutil.copytree(tiny_model, folder)
    (folder / "own.py").write_text(CODE.format(marker=str(marker)))
    config = json.loads((folder / "config.json").read_text())
    config["model_type"] = "own"
    config["auto_map"] = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_code_beside_a_model_is_not_run(with_code: Path, marker: Path) -> None:
    with pytest.raises(ModelError, match="trust_remote_code"):
        load_weights(with_code, device=CPU, dtype=None)
    assert not marker.exists()


def test_code_beside_a_tokenizer_is_not_run(with_code: Path, marker: Path) -> None:
    with pytest.raises(ValueError, match="trust_remote_code"):
        Prompts(str(with_code))
    assert not marker.exists()


def test_code_is_run_where_that_is_asked_for(with_code: Path, marker: Path) -> None:
    load_weights(with_code, device=CPU, dtype=None, trust_remote_code=True)
    assert marker.exists()
