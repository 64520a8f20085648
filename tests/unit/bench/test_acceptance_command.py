"""`paceline bench acceptance` with methods of all kinds, on a tiny model: what is asked for is replayed."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from bench.acceptance import command
from paceline.engine.fingerprint import weights_fingerprint
from paceline.heads import store
from paceline.heads.eagle import EagleConfig, EagleHead

TASKS = ("writing", "translation", "summarization", "qa", "math_reasoning", "rag")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("dataset") / "questions.jsonl"
    lines = (json.dumps({"category": task, "turns": [f"about {task}"]}) for task in TASKS)
    path.write_text("\n".join(lines))
    return path


def lengths(model: Path, dataset: Path, *options: str) -> dict[str, float]:
    """Acceptance length by method."""
    ran = CliRunner().invoke(
        command,
        ["--model", str(model), "--dataset", str(dataset), "--per-task", "1", "--tokens", "20", *options],
        catch_exceptions=False,
    )
    assert ran.exit_code == 0, ran.output
    return {name: float(length) for name, length in re.findall(r"^([\w+]+) +(\d\.\d+)", ran.stdout, re.M)}


def test_a_draft_model_that_is_the_target_is_mostly_right(tiny_model: Path, dataset: Path) -> None:
    told = lengths(
        *(tiny_model, dataset, "--draft-model", str(tiny_model), "--depth", "3"),
        *("--method", "lookup", "--method", "draft", "--method", "lookup+draft"),
    )
    # Random weights are sure of little, so three right tokens in a row may not be among the nodes.
    assert told["draft"] > 2
    assert told["lookup+draft"] > 2
    assert told["lookup"] < 2


def test_a_head_gets_the_targets_states(tiny_model: Path, dataset: Path, tmp_path: Path) -> None:
    config = EagleConfig((0, 1), 64, 128, heads=4, kv_heads=2, head_dim=16, draft_vocab=100, vocab=512)
    head = EagleHead(config)
    with torch.no_grad():
        head.tokens.copy_(torch.arange(100))
    store.save(head, tmp_path / "h.safetensors", weights_fingerprint=weights_fingerprint(tiny_model), card={})
    for treatment in ("true", "zero", "other"):
        told = lengths(
            *(tiny_model, dataset, "--heads", str(tmp_path), "--states", treatment),
            *("--method", "eagle", "--method", "lookup+eagle"),
        )
        # It was never trained.
        assert 1 <= told["eagle"] < 1.5
        assert told["lookup+eagle"] >= 1


def test_a_method_that_is_not_there_or_does_not_fit_is_an_error(tiny_model: Path, dataset: Path) -> None:
    asked = ["--model", str(tiny_model), "--dataset", str(dataset), "--tokens", "2", "--per-task", "1"]
    for method, said in (
        ("lokup", "no drafting method 'lokup'"),
        ("eagle", "knows no model with the target's weights"),
    ):
        ran = CliRunner().invoke(command, [*asked, "--method", method])
        assert ran.exit_code == 2
        assert said in ran.output
