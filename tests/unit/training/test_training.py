"""Small trainings from nothing: texts are written, a head and a draft model learn from them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from transformers import AutoModelForCausalLM, AutoTokenizer

from paceline.heads import store
from paceline.training import corpus
from paceline.training.__main__ import command
from tests.tiny import make_tiny_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("model"), layers=4)


@pytest.fixture(scope="module")
def texts(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("texts") / "tiny.ids"
    done = run("texts", "--model", str(model), "--out", str(path), "--tokens", "6000", "--sessions", "16")
    assert done.exit_code == 0, done.output
    return path


def run(*arguments: str) -> Result:
    return CliRunner().invoke(command, [*arguments, "--longest", "640", "--threads", "1"])


def test_texts_go_on_where_a_killed_writer_left_one_half_written(model: Path, texts: Path) -> None:
    before = corpus.read(texts)[1]
    assert sum(text.written for text in before) >= 6000
    assert {text.kind for text in before} >= {"free", "ask", "translate"}
    texts.write_bytes(texts.read_bytes()[:-5])

    run("texts", "--model", str(model), "--out", str(texts), "--tokens", "6500", "--sessions", "4")

    after = corpus.read(texts)[1]
    assert after[: len(before) - 1] == before[:-1]
    assert sum(text.written for text in after) >= 6500
    assert len({text.ids for text in after}) == len(after)


def test_a_head_lowers_its_loss_and_says_how_it_was_made(model: Path, texts: Path, tmp_path: Path) -> None:
    out = tmp_path / "head.safetensors"
    done = run(
        *("eagle", "--model", str(model), "--texts", str(texts), "--out", str(out)),
        *("--tokens", "24000", "--batch-tokens", "512", "--passes", "2", "--draft-vocab", "256"),
    )
    assert done.exit_code == 0, done.output

    labels = store.labels(out)
    curve = labels.card["curve"]
    assert curve[-1]["loss"] < curve[0]["loss"] - 0.1
    assert labels.card["tokens_seen"] >= 24000
    assert labels.card["command"].startswith("paceline train eagle --model")
    assert str(tmp_path) not in labels.card["command"]
    assert labels.card["texts"]["distinct_tokens"] > 5000
    head = store.load(out, weights_fingerprint=labels.weights_fingerprint)
    assert len(set(head.tokens.tolist())) == 256
    assert "| seen |" in out.with_suffix(".md").read_text()


def test_a_draft_model_lowers_its_loss_and_loads_as_a_model(model: Path, texts: Path, tmp_path: Path) -> None:
    out = tmp_path / "draft"
    done = run(
        *("draft", "--model", str(model), "--texts", str(texts), "--out", str(out), "--layers", "2"),
        *("--tokens", "16000", "--batch-tokens", "512"),
    )
    assert done.exit_code == 0, done.output

    curve = json.loads((out / "card.json").read_text())["curve"]
    assert curve[-1]["loss"] < curve[0]["loss"]
    assert AutoModelForCausalLM.from_pretrained(out).config.num_hidden_layers == 2


def test_training_goes_on_from_its_checkpoint(model: Path, texts: Path, tmp_path: Path) -> None:
    out = tmp_path / "head.safetensors"
    common = ("eagle", "--model", str(model), "--texts", str(texts), "--out", str(out), "--passes", "2")
    run(*common, "--tokens", "4000")
    first = store.labels(out).card["curve"]

    run(*common, "--tokens", "8000")

    card = store.labels(out).card
    assert card["curve"][: len(first)] == first
    assert 8000 <= card["tokens_seen"] < 12000


def test_texts_that_share_words_with_an_evaluated_prompt_are_dropped(
    model: Path, texts: Path, tmp_path: Path
) -> None:
    _, written = corpus.read(texts)
    theirs = next(text for text in written if text.job % 20 and len(text.ids) > 150)
    dataset = tmp_path / "dataset.jsonl"
    prompt = AutoTokenizer.from_pretrained(model).decode(list(theirs.ids), skip_special_tokens=True)
    dataset.write_text(json.dumps({"turns": [prompt]}) + "\n")
    out = tmp_path / "head.safetensors"

    done = run(
        *("eagle", "--model", str(model), "--texts", str(texts), "--out", str(out), "--passes", "1"),
        *("--tokens", "2000", "--dataset", str(dataset)),
    )

    assert done.exit_code == 0, done.output
    card = store.labels(out).card
    assert card["shared_runs_of_13_words"]["texts_dropped"] >= 1
    assert card["texts"]["count"] < len([text for text in written if text.job % 20])


def test_texts_of_another_vocabulary_are_refused(texts: Path, tmp_path: Path) -> None:
    other = make_tiny_model(tmp_path / "other", vocab_size=400)

    done = run("eagle", "--model", str(other), "--texts", str(texts), "--out", str(tmp_path / "head"))

    assert done.exit_code != 0
    assert "vocabulary" in done.output
