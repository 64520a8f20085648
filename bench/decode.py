"""Decoding speed of the whole system on this machine, against itself without drafters and transformers.

All arms answer each prompt once, in one run, one decode at a time. The drafter starts with the tables that
come with Paceline, and learns from one prompt for the next, as in production; plain decoding never feeds it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich import box
from rich.table import Table

from bench.arms import ARMS, PLAIN, SPECULATIVE, TRANSFORMERS, Arm, PacelineArm, Sample, transformers_arm
from bench.dataset import TASKS, Question
from bench.results import Document, per, ratio
from bench.system import Plan, Progress, system

NOTE = (
    "Each prompt once per arm, one decode at a time, the order of arms rotating. Times from the request, "
    "prefill included, to the last token; ratios of total tokens over total time. The drafter starts with "
    "the tables that come with Paceline and with the warm-up prompt, which is in no dataset, and carries "
    "what it learns over from prompt to prompt."
)
# In no dataset, so that nothing of a measured prompt is known before it is asked.
WARM_UP = "List the days of the week, then list them again."
_WARM_UP_TOKENS = 24
# Longer than the threads of what ran before spin for new work.
_PAUSE_S = 0.2
_HEADERS = (
    "prompts",
    "transf.\ntok/s",
    "plain\ntok/s",
    "specul.\ntok/s",
    "plain/\ntransf.",
    "specul./\nplain",
    "accept.\nlength",
)


@dataclass(frozen=True, slots=True)
class Answered:
    """One question, the order in which the arms answered it, and what each said."""

    question: Question
    order: tuple[str, ...]
    samples: Mapping[str, Sample]


async def measure(plan: Plan, progress: Progress) -> Document:
    """Start everything, measure, stop everything. Raises what `system` and the arms raise."""
    async with transformers_arm(plan, progress) as reference, system(plan, progress) as running:
        arms: dict[str, Arm] = {
            TRANSFORMERS: reference,
            PLAIN: PacelineArm(running.client, plan, speculation=False),
            SPECULATIVE: PacelineArm(running.client, plan, speculation=True),
        }
        return report(await take_turns(arms, plan.questions, plan.max_tokens, progress))


async def take_turns(
    arms: Mapping[str, Arm],
    questions: Sequence[Question],
    max_tokens: int,
    progress: Progress,
    *,
    pause_s: float = _PAUSE_S,
) -> list[Answered]:
    """Every arm once per question, one after another; who begins moves on from question to question."""
    names = list(arms)
    for name in names:
        progress(f"warming up: {name}", 0, len(questions) * len(names))
        await arms[name].answer(WARM_UP, min(_WARM_UP_TOKENS, max_tokens))
    answers: list[Answered] = []
    for number, question in enumerate(questions):
        first = number % len(names)
        order = (*names[first:], *names[:first])
        samples: dict[str, Sample] = {}
        for name in order:
            progress(f"{question.task}: {name}", number * len(names) + len(samples))
            await asyncio.sleep(pause_s)
            samples[name] = await arms[name].answer(question.text, max_tokens)
        answers.append(Answered(question, order, samples))
    progress("done", len(questions) * len(names))
    return answers


def report(answers: Sequence[Answered]) -> Document:
    """The JSON document: figures of all, of each task, and every sample."""
    groups = {task: [answered for answered in answers if answered.question.task == task] for task in TASKS}
    identical = sum(_identical(answered) for answered in answers)
    same_ids = sum(
        answered.samples[PLAIN].token_ids == answered.samples[TRANSFORMERS].token_ids for answered in answers
    )
    return {
        **_figures(answers),
        "identical": {"of": len(answers), "identical": identical},
        "same_as_transformers": {"of": len(answers), "same": same_ids},
        "per_task": [{"task": task, **_figures(group)} for task, group in groups.items() if group],
        "note": NOTE,
        "samples": [_sample(answered) for answered in answers],
    }


def table(document: Mapping[str, Any]) -> Table:
    """One row per task and one of all."""
    made = Table(
        box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), caption=_verdict(document), caption_justify="left"
    )
    made.add_column("task", no_wrap=True)
    for header in _HEADERS:
        made.add_column(header, justify="right")
    for row in document["per_task"]:
        made.add_row(row["task"], *_cells(row))
    made.add_section()
    made.add_row("all", *_cells(document), style="bold")
    return made


def _figures(answers: Sequence[Answered]) -> dict[str, Any]:
    rates = {arm: _rate([answered.samples[arm] for answered in answers]) for arm in ARMS}
    decode = {arm: _decode_rate([answered.samples[arm] for answered in answers]) for arm in ARMS}
    receipts = [receipt for answered in answers if (receipt := answered.samples[SPECULATIVE].receipt)]
    steps = sum(receipt.steps for receipt in receipts)
    return {
        "speculative_over_plain": ratio(rates[SPECULATIVE], rates[PLAIN]),
        "plain_over_transformers": ratio(rates[PLAIN], rates[TRANSFORMERS]),
        "acceptance_length": ratio(sum(receipt.committed_tokens for receipt in receipts), steps),
        "prompts": len(answers),
        "tokens_per_second": {arm: round(rate, 4) for arm, rate in rates.items()},
        "decode_tokens_per_second": {arm: round(rate, 4) for arm, rate in decode.items()},
        "decode_speculative_over_plain": ratio(decode[SPECULATIVE], decode[PLAIN]),
        "decode_plain_over_transformers": ratio(decode[PLAIN], decode[TRANSFORMERS]),
    }


def _rate(samples: Sequence[Sample]) -> float:
    return per(sum(len(sample.token_ids) for sample in samples), sum(sample.seconds for sample in samples))


def _decode_rate(samples: Sequence[Sample]) -> float:
    """Tokens after the first arrival over the time they took."""
    tokens = sum(len(sample.token_ids) - sample.first_tokens for sample in samples)
    return per(tokens, sum(sample.seconds - sample.first_s for sample in samples))


def _identical(answered: Answered) -> bool:
    """Whether speculation changed nothing: neither a token nor the text that reached the client."""
    plain, speculative = answered.samples[PLAIN], answered.samples[SPECULATIVE]
    return plain.token_ids == speculative.token_ids and plain.text == speculative.text


def _sample(answered: Answered) -> dict[str, Any]:
    question = answered.question
    return {
        "question_id": question.id,
        "task": question.task,
        "category": question.category,
        "order": list(answered.order),
        "identical": _identical(answered),
        **{arm: _arm_sample(sample) for arm, sample in answered.samples.items()},
    }


def _arm_sample(sample: Sample) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "tokens": len(sample.token_ids),
        "seconds": round(sample.seconds, 5),
        "first_token_seconds": round(sample.first_s, 5),
        "text": sample.text,
    }
    if sample.receipt is not None:
        fields["receipt"] = asdict(sample.receipt)
    return fields


def _verdict(document: Mapping[str, Any]) -> str:
    same, reference = document["identical"], document["same_as_transformers"]
    return (
        f"with and without speculation identical: {same['identical']} of {same['of']}; "
        f"plain equals transformers: {reference['same']} of {reference['of']}"
    )


def _cells(row: Mapping[str, Any]) -> list[str]:
    return [
        str(row["prompts"]),
        *(f"{row['tokens_per_second'][arm]:.1f}" for arm in ARMS),
        f"{row['plain_over_transformers']:.2f}x",
        f"{row['speculative_over_plain']:.2f}x",
        f"{row['acceptance_length']:.2f}",
    ]
