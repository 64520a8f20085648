"""`paceline bench` as a user runs it."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from drafter_svc import methods
from paceline.vocabulary import vocab_fingerprint
from tests.tiny import CONTEXT, make_tiny_model

CATEGORIES = ("coding", "translation", "summarization", "qa", "math_reasoning", "rag")


async def bench(*args: str, **env: str) -> tuple[int, str, str]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "bench", *args),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, "COLUMNS": "100", "NO_COLOR": "1", **env},
    )
    out, err = await process.communicate()
    return process.returncode or 0, out.decode(), err.decode()


def dataset(path: Path) -> Path:
    rows = [{"question_id": 1, "category": name, "turns": [f"the quick {name}"]} for name in CATEGORIES]
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return path


@pytest.mark.long(reason="measures three ways of decoding, with all their imports, as a user does")
async def test_decode_measures_the_whole_system(tmp_path: Path) -> None:
    model = make_tiny_model(tmp_path / "tiny")
    made = tmp_path / "out.json"
    status, out, err = await bench(
        *("decode", "--dataset", str(dataset(tmp_path / "d.jsonl")), "--json", str(made)),
        *("--prompts", "6", "--max-tokens", "64", "--model", str(model), "--dtype", "float32"),
        *("--threads", "1"),
        PACELINE_CACHE=str(tmp_path / "cache"),
    )
    assert status == 0, err
    document = json.loads(made.read_text())
    assert document["identical"] == {"of": 6, "identical": 6}
    assert document["same_as_transformers"] == {"of": 6, "same": 6}
    assert document["speculative_over_plain"] > 0
    assert document["plain_over_transformers"] > 0
    assert document["acceptance_length"] >= 1
    assert [row["prompts"] for row in document["per_task"]] == [1] * 6
    assert document["config"]["threads"] == 1
    # Not every time: the verifier waits for no draft, and a tiny model may be done before one comes.
    assert any(row["speculative"]["receipt"]["drafted_steps"] > 0 for row in document["samples"])
    assert all(row["plain"]["receipt"]["drafted_steps"] == 0 for row in document["samples"])
    assert "math_reasoning" in out


@pytest.mark.long(reason="decodes in twelve batches, with all imports, as a user does")
async def test_padding_changes_no_text(tmp_path: Path) -> None:
    model = make_tiny_model(tmp_path / "tiny")
    made = tmp_path / "out.json"
    status, out, err = await bench(
        *("padding", "--dataset", str(dataset(tmp_path / "d.jsonl")), "--json", str(made)),
        *("--prompts", "6", "--max-tokens", "64", "--model", str(model), "--dtype", "float32"),
        *("--batch", "2", "--batch", "5", "--rounds", "2", "--threads", "1"),
        PACELINE_CACHE=str(tmp_path / "cache"),
    )
    assert status == 0, err
    document = json.loads(made.read_text())
    assert document["unpadded_over_padded_at_5"] > 0
    for row in document["rows"]:
        assert {arm["same_text"] for arm in row["arms"].values()} == {2 * row["batch"]}
        padded, unpadded = row["arms"]["padded"], row["arms"]["unpadded"]
        assert padded["padding_rows"] > 0 < padded["hidden_keys"]
        assert unpadded["padding_rows"] == 0 == unpadded["hidden_keys"]
    assert "EMS-SD" in out


@pytest.mark.long(reason="decodes texts for tables, with all imports, as a user does")
async def test_tables_are_what_a_drafter_starts_with(tmp_path: Path) -> None:
    model = make_tiny_model(tmp_path / "tiny")
    asked = ("tables", "--model", str(model), "--out", str(tmp_path), "--texts", "3")
    status, out, err = await bench(*asked, "--question-tokens", "40", "--answer-tokens", "300")
    assert status == 0, err
    assert "3 texts" in out
    vocab = AutoTokenizer.from_pretrained(model).get_vocab()
    method = methods.create("lookup+recycling", len(vocab))
    assert methods.tables.load(method, tmp_path, vocab_fingerprint(vocab))
    status, out, err = await bench(*asked, "--answer-tokens", str(CONTEXT))
    assert status != 0
    assert "--answer-tokens" in err


@pytest.mark.long(reason="records and plays two drafters, with all their imports, as a user does")
async def test_drafters_are_played_at_a_round_trip(tmp_path: Path) -> None:
    model = make_tiny_model(tmp_path / "tiny")
    made = tmp_path / "out.json"
    status, out, err = await bench(
        *("drafters", "--dataset", str(dataset(tmp_path / "d.jsonl")), "--json", str(made)),
        *("--only", "paced", "--only", "replay", "--row", "text", "--row", "draft model"),
        *("--prompts", "2", "--max-tokens", "48", "--paced-prompts", "1", "--paced-tokens", "32"),
        *("--round-trip", "5", "--draft-model", str(model)),
        *("--model", str(model), "--dtype", "float32", "--threads", "1"),
        PACELINE_CACHE=str(tmp_path / "cache"),
        COLUMNS="160",
    )
    assert status == 0, err
    document = json.loads(made.read_text())
    text, draft_model = document["rows"]
    assert text["parameters"] == 0 < draft_model["parameters"]
    assert "model.safetensors" in draft_model["weights_sha256"]
    assert text["draft_ms"].keys() == {"text"}
    for times in draft_model["draft_ms"]["draft"].values():
        assert times["p95"] >= times["median"] > 0
    # It is the target itself.
    assert draft_model["replay"]["31"]["acceptance_length"] > text["replay"]["31"]["acceptance_length"] >= 1
    for row in (text, draft_model):
        paced = row["paced"]
        assert paced["plain_identical"]
        assert paced["paced_over_split"] > 0
        assert [(each["ahead"], each["round_trip_ms"]) for each in paced["paced"]] == [
            (False, 0.0),
            (False, 5.0),
            (True, 5.0),
        ]
        for each in (paced["split"], *paced["paced"]):
            assert each["identical"] == paced["prompts"] == 1
            assert each["tokens_per_second"] > 0
        # Not every time: a tiny model may be done before a drafter joins.
        assert any(each["bytes_up_per_token"] > 0 < each["bytes_down_per_token"] for each in paced["paced"])
    assert "round trip" in out
    assert "SHA-256: model.safetensors" in out


@pytest.mark.parametrize(
    ("args", "why"),
    [
        (("--dataset", "nowhere.jsonl"), "nowhere.jsonl' does not exist"),
        ((), "Missing option '--dataset'"),
        (("--dataset", __file__), "line 1: not a Spec-Bench question"),
        (("--dataset", __file__, "--json", "/nowhere/out.json"), "cannot write into the folder /nowhere"),
        (("--dataset", __file__, "--prompts", "0"), "Invalid value for '--prompts'"),
    ],
)
async def test_decode_says_what_is_wrong(args: tuple[str, ...], why: str) -> None:
    status, out, err = await bench("decode", *args)
    assert status in (1, 2)
    assert why in err
    assert "Traceback" not in err
    assert out == ""


@pytest.mark.parametrize("command", [[], ["decode"], ["acceptance"]])
async def test_help(command: list[str]) -> None:
    status, out, err = await bench(*command, "--help")
    assert (status, err) == (0, "")
    assert out.startswith("Usage: ")
