from __future__ import annotations

import pytest

from bench.arms import ArmFailed, Sample
from bench.dataset import Question
from bench.decode import WARM_UP, measure

QUESTIONS = [Question(str(number), "qa", "qa", f"question {number}") for number in range(4)]


class Scripted:
    def __init__(self, name: str, asked: list[tuple[str, str]]) -> None:
        self.name = name
        self.asked = asked

    async def answer(self, prompt: str, max_tokens: int) -> Sample:
        self.asked.append((self.name, prompt))
        return Sample(prompt, (1,) * max_tokens, 0.1, 0.2)


async def test_every_arm_answers_every_prompt_once_in_rotating_order() -> None:
    asked: list[tuple[str, str]] = []
    arms = {name: Scripted(name, asked) for name in "abc"}
    answers = await measure(arms, QUESTIONS, 5, lambda what, done: None, pause_s=0)
    assert asked[:3] == [(name, WARM_UP) for name in "abc"]
    assert "".join(name for name, _ in asked[3:]) == "abcbcacababc"
    assert sorted(asked[3:]) == sorted((name, question.text) for name in "abc" for question in QUESTIONS)
    assert ["".join(answered.order) for answered in answers] == ["abc", "bca", "cab", "abc"]
    assert all(answered.samples["b"].text == answered.question.text for answered in answers)


async def test_progress_counts_decodes() -> None:
    seen: list[int] = []
    arms = {name: Scripted(name, []) for name in "ab"}
    await measure(arms, QUESTIONS[:2], 5, lambda what, done: seen.append(done), pause_s=0)
    assert seen == [0, 0, 0, 1, 2, 3, 4]


async def test_an_arm_that_fails_ends_the_run() -> None:
    class Broken:
        async def answer(self, prompt: str, max_tokens: int) -> Sample:
            raise ArmFailed("no")

    with pytest.raises(ArmFailed):
        await measure({"a": Broken()}, QUESTIONS, 5, lambda what, done: None, pause_s=0)
