from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from bench.arms import Sample
from bench.dataset import Question
from bench.decode import ARMS, Answered
from bench.report import report, table, write
from paceline.session import Receipt


def answered(task: str, *, text: str = "same", plain_s: float = 2.0) -> Answered:
    samples = {
        "transformers": Sample("same", (1,) * 10, 0.5, 4.0),
        "plain": Sample("same", (1,) * 10, 0.5, plain_s, receipt=Receipt(steps=10, committed_tokens=10)),
        "speculative": Sample(text, (1,) * 10, 0.5, 1.0, 2, Receipt(4, 10, 60, 6, 3)),
    }
    return Answered(Question("7", task, task, "?"), ARMS, samples)


def test_ratios_are_total_tokens_over_total_time() -> None:
    document = report([answered("qa"), answered("rag", plain_s=6.0)], about={}, config={})
    # 20 tokens: in 8 s by transformers, in 8 s plainly, in 2 s with speculation.
    assert document["speculative_over_plain"] == 4.0
    assert document["plain_over_transformers"] == 1.0
    assert document["acceptance_length"] == 2.5
    assert document["tokens_per_second"] == {"transformers": 2.5, "plain": 2.5, "speculative": 10.0}
    rows = {row["task"]: row for row in document["per_task"]}
    assert list(rows) == ["qa", "rag"]
    assert rows["qa"]["speculative_over_plain"] == 2.0
    assert rows["rag"]["speculative_over_plain"] == 6.0


def test_decode_rates_leave_out_what_came_with_the_first_token() -> None:
    document = report([answered("qa")], about={}, config={})
    assert document["decode_tokens_per_second"]["plain"] == 6.0  # 9 tokens in 1.5 s
    assert document["decode_tokens_per_second"]["speculative"] == 16.0  # 8 tokens in 0.5 s


def test_counts_identical_texts() -> None:
    document = report([answered("qa"), answered("qa", text="other")], about={}, config={})
    assert document["identical"] == {"of": 2, "identical": 1}
    assert document["same_as_transformers"] == {"of": 2, "same": 2}
    assert [sample["identical"] for sample in document["samples"]] == [True, False]


def test_one_token_answers_have_no_decode_rate() -> None:
    one = Sample("x", (1,), 0.5, 0.5, receipt=Receipt(1, 1))
    document = report(
        [Answered(Question("1", "qa", "qa", "?"), ARMS, dict.fromkeys(ARMS, one))], about={}, config={}
    )
    assert document["decode_speculative_over_plain"] == 0.0
    assert document["speculative_over_plain"] == 1.0


def test_table_fits_a_terminal() -> None:
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(table(report([answered("math_reasoning")], about={}, config={})))
    shown = console.export_text()
    assert "math_reasoning" in shown
    assert "2.00x" in shown
    assert "identical: 1 of 1" in shown
    assert "…" not in shown


def test_write_is_whole_or_nothing(tmp_path: Path) -> None:
    path = tmp_path / "out.json"
    write({"a": "é"}, path)
    assert json.loads(path.read_text(encoding="utf-8")) == {"a": "é"}
    with pytest.raises(TypeError):
        write({"a": object()}, path)
    assert json.loads(path.read_text(encoding="utf-8")) == {"a": "é"}
    assert [entry.name for entry in tmp_path.iterdir()] == ["out.json"]
