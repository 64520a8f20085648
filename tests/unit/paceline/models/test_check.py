"""`paceline model check` says before anybody deploys whether a model is served right."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, MambaConfig
from typer.testing import CliRunner

from paceline.cli.model import app
from paceline.engine.check import CASES


def test_says_each_case_of_a_model_that_is_served(tiny_model: Path) -> None:
    told = CliRunner().invoke(app, ["check", str(tiny_model)])
    assert told.exit_code == 0
    assert all(what in told.stdout for what in CASES.values())
    assert "served; exact=True" in told.stdout


def test_refuses_with_the_reason(tiny_model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "mamba"
    shutil.copytree(tiny_model, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    config = MambaConfig(vocab_size=512, hidden_size=64, num_hidden_layers=2)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    told = CliRunner().invoke(app, ["check", str(folder), "--json"])
    assert told.exit_code == 1
    report = json.loads(told.stdout)
    assert not report["served"]
    assert "not served" in report["reason"]
    assert "\n" not in report["reason"]


@pytest.mark.parametrize("kind", ["bfloat17", "int8"])
def test_an_unknown_dtype_is_named(kind: str, tiny_model: Path) -> None:
    assert CliRunner().invoke(app, ["check", str(tiny_model), "--dtype", kind]).exit_code == 2
