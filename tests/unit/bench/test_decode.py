from __future__ import annotations

import io

import pytest
from rich.console import Console

from bench.arms import ARMS, Sample
from bench.dataset import Question
from bench.decode import WARM_UP, Answered, report, table, take_turns
from bench.system import BenchError
from paceline.session import Receipt

QUESTIONS = [Question(str(number), "qa", "qa", f"question {number}") for number in range(4)]


class Scripted:
    def __init__(self, name: str, asked: list[tuple[str, str]]) -> None:
        self.name = name
        self.asked = asked

    async def answer(self, prompt: str, max_tokens: int) -> Sample:
        self.asked.append((self.name, prompt))
        return Sample(prompt, (1,) * max_tokens, 0.1, 0.2)


def quiet(what: str, done: int = 0, of: int | None = None) -> None:
    pass


async def test_every_arm_answers_every_prompt_once_in_rotating_order() -> None:
    asked: list[tuple[str, str]] = []
    arms = {name: Scripted(name, asked) for name in "abc"}
    answers = await take_turns(arms, QUESTIONS, 5, quiet, pause_s=0)
    assert asked[:3] == [(name, WARM_UP) for name in "abc"]
    assert "".join(name for name, _ in asked[3:]) == "abcbcacababc"
    assert sorted(asked[3:]) == sorted((name, question.text) for name in "abc" for question in QUESTIONS)
    assert ["".join(answered.order) for answered in answers] == ["abc", "bca", "cab", "abc"]
    assert all(answered.samples["b"].text == answered.question.text for answered in answers)


async def test_progress_counts_decodes() -> None:
    seen: list[tuple[int, int | None]] = []

    def progress(what: str, done: int = 0, of: int | None = None) -> None:
        seen.append((done, of))

    await take_turns({name: Scripted(name, []) for name in "ab"}, QUESTIONS[:2], 5, progress, pause_s=0)
    assert seen == [(0, 4), (0, 4), (0, None), (1, None), (2, None), (3, None), (4, None)]


async def test_an_arm_that_fails_ends_the_run() -> None:
    class Broken:
        async def answer(self, prompt: str, max_tokens: int) -> Sample:
            raise BenchError("no")

    with pytest.raises(BenchError):
        await take_turns({"a": Broken()}, QUESTIONS, 5, quiet, pause_s=0)


def answered(task: str, *, text: str = "same", plain_s: float = 2.0) -> Answered:
    samples = {
        "transformers": Sample("same", (1,) * 10, 0.5, 4.0),
        "plain": Sample("same", (1,) * 10, 0.5, plain_s, receipt=Receipt(steps=10, committed_tokens=10)),
        "speculative": Sample(text, (1,) * 10, 0.5, 1.0, 2, Receipt(4, 10, 60, 6, 3)),
    }
    return Answered(Question("7", task, task, "?"), ARMS, samples)


def test_ratios_are_total_tokens_over_total_time() -> None:
    document = report([answered("qa"), answered("rag", plain_s=6.0)])
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
    document = report([answered("qa")])
    assert document["decode_tokens_per_second"]["plain"] == 6.0  # 9 tokens in 1.5 s
    assert document["decode_tokens_per_second"]["speculative"] == 16.0  # 8 tokens in 0.5 s


def test_counts_identical_texts() -> None:
    document = report([answered("qa"), answered("qa", text="other")])
    assert document["identical"] == {"of": 2, "identical": 1}
    assert document["same_as_transformers"] == {"of": 2, "same": 2}
    assert [sample["identical"] for sample in document["samples"]] == [True, False]


def test_one_token_answers_have_no_decode_rate() -> None:
    one = Sample("x", (1,), 0.5, 0.5, receipt=Receipt(1, 1))
    document = report([Answered(Question("1", "qa", "qa", "?"), ARMS, dict.fromkeys(ARMS, one))])
    assert document["decode_speculative_over_plain"] == 0.0
    assert document["speculative_over_plain"] == 1.0


def test_table_fits_a_terminal() -> None:
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(table(report([answered("math_reasoning")])))
    shown = console.export_text()
    assert "math_reasoning" in shown
    assert "2.00x" in shown
    assert "identical: 1 of 1" in shown
    assert "…" not in shown
