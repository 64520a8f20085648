from __future__ import annotations

import asyncio
import io

import pytest
from rich.console import Console

from bench.arms import Sample
from bench.dataset import Question
from bench.decode import WARM_UP
from bench.peers import PACELINE, PACELINE_SPECULATIVE, TRANSFORMERS, VLLM, VLLM_NGRAM
from bench.peers.catalog import Contestant
from bench.peers.compare import Tally, compete, report, shares, table

QUESTIONS = [Question(str(number), "qa", "qa", f"question {number}") for number in range(9)]


class Scripted:
    def __init__(self) -> None:
        self.asked: list[str] = []
        self.busy = 0
        self.most_busy = 0

    async def answer(self, prompt: str, max_tokens: int) -> Sample:
        if prompt != WARM_UP:
            self.asked.append(prompt)
        self.busy += 1
        self.most_busy = max(self.busy, self.most_busy)
        await asyncio.sleep(0.001)
        self.busy -= 1
        return Sample(prompt, (), 0.1, 0.2, counted=max_tokens)


def quiet(what: str, done: int = 0, of: int | None = None) -> None:
    pass


def tally(tokens: int, seconds: float, text: str = "a") -> Tally:
    return Tally(seconds, samples={"q": Sample(text, (), 0.0, seconds, counted=tokens)})


def test_no_question_is_asked_at_two_concurrencies() -> None:
    shared = shares(QUESTIONS, {1: 2, 4: 5})
    assert [len(asked) for asked in shared.values()] == [2, 5]
    assert len({question.id for asked in shared.values() for question in asked}) == 7
    with pytest.raises(ValueError, match="9 questions where 10 are needed"):
        shares(QUESTIONS, {1: 2, 8: 8})


async def test_everybody_answers_everything_so_many_at_a_time() -> None:
    one, other = Scripted(), Scripted()
    contestants = [Contestant("one", one), Contestant("other", other, most=1)]
    tallies = await compete(contestants, shares(QUESTIONS, {1: 3, 4: 6}), 5, quiet, pause_s=0)
    assert sorted(one.asked) == [question.text for question in QUESTIONS]
    assert one.most_busy == 4
    # What answers one at a time is not asked for more.
    assert sorted(other.asked) == [question.text for question in QUESTIONS[:3]]
    assert set(tallies) == {("one", 1), ("other", 1), ("one", 4)}
    assert tallies["one", 4].tokens == 30
    assert tallies["one", 4].seconds > 0


def test_ratios_are_alone_but_for_the_best_peer_at_16() -> None:
    document = report(
        {
            (TRANSFORMERS, 1): tally(100, 4.0),
            (VLLM, 1): tally(100, 2.0),
            (PACELINE, 1): tally(100, 2.0),
            (PACELINE_SPECULATIVE, 1): tally(100, 1.0),
            (VLLM, 16): tally(100, 0.5),
            (VLLM_NGRAM, 16): tally(100, 1.0),
            (PACELINE_SPECULATIVE, 16): tally(100, 0.4),
        },
        missing={},
    )
    assert document["plain_over_transformers"] == 2.0
    assert document["speculative_over_plain"] == 2.0
    assert document["plain_over_vllm"] == 1.0
    assert document["speculative_over_vllm_ngram"] is None
    assert document["speculative_over_best_peer_at_16"] == 1.25
    assert document["at_concurrency"]["16"]["speculative_over_vllm_ngram"] == 2.5


def test_what_was_not_measured_is_none_and_not_left_out() -> None:
    document = report({(VLLM, 8): tally(100, 1.0), (PACELINE, 8): tally(100, 2.0)}, missing={})
    assert document["plain_over_vllm"] is None
    assert document["speculative_over_best_peer_at_16"] is None
    assert document["at_concurrency"]["8"]["plain_over_vllm"] == 0.5


def test_counts_texts_that_equal_plain_pacelines() -> None:
    document = report({(PACELINE, 1): tally(1, 1.0), (VLLM, 1): tally(1, 1.0, text="b")}, missing={})
    assert {row["arm"]: row["same_text"] for row in document["rows"]} == {PACELINE: 1, VLLM: 0}
    assert report({(VLLM, 1): tally(1, 1.0)}, missing={})["rows"][0]["same_text"] is None


def test_table_names_who_is_missing() -> None:
    document = report(
        {(TRANSFORMERS, 1): tally(100, 4.0), (PACELINE, 1): tally(9, 1.0), (PACELINE, 16): tally(90, 1.0)},
        missing={VLLM: "not installed: make peers", VLLM_NGRAM: "it ended\nlog: nowhere"},
    )
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(table(document))
    shown = console.export_text()
    assert "vllm is missing: not installed: make peers" in shown
    assert "vllm+ngram is missing: it ended" in shown
    assert any(line.split() == ["transformers", "25.0", "-"] for line in shown.splitlines())
    assert any(line.split() == ["paceline", "9.0", "90.0"] for line in shown.splitlines())
