"""Answers of the target to questions that it makes up itself, with its likeliest ids: what tables learn from.

A chat model that is shown nothing but the beginning of a user's turn writes one (Magpie, arXiv 2406.08464),
and answers it: questions and answers as its traffic might have them, of no data set.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from paceline.sampling import SamplingParams
from paceline.training.template import Template
from paceline.training.writing import Job, Scribe, Wanted


@dataclass(slots=True)
class Writing:
    """One text and the model's top ids for each of its tokens."""

    prompt: tuple[int, ...]
    sampling: SamplingParams
    text: list[int] = field(default_factory=list)
    top_ids: list[tuple[int, ...]] = field(default_factory=list)


def answers(
    scribe: Scribe, template: Template, count: int, *, question_tokens: int, answer_tokens: int, top_k: int
) -> Iterator[Writing]:
    """`count` greedy answers to questions that the model made up, as they are done."""
    jobs = (_answer(template, seed, question_tokens, answer_tokens, top_k) for seed in range(count))
    return scribe.write(jobs, lambda _: None)


def _answer(
    template: Template, seed: int, question_tokens: int, answer_tokens: int, top_k: int
) -> Job[Writing]:
    asking = SamplingParams(
        max_tokens=question_tokens, temperature=1.0, top_p=0.95, seed=seed, stop_token_ids=template.stop
    )
    asked = yield Wanted(template.asking([], ""), asking)
    question = template.decode_after(asked.ids)
    prompt = template.answering([{"role": "user", "content": question}])
    answering = SamplingParams(max_tokens=answer_tokens, stop_token_ids=template.stop)
    told = yield Wanted(prompt, answering, top_k)
    return Writing(prompt, answering, told.ids, told.top_ids)
