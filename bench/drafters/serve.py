"""One row in one arrangement: the real system answers every question with drafts and without, in turns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from bench.arms import PLAIN, SPECULATIVE, PacelineArm, Sample
from bench.dataset import TASKS, Question
from bench.decode import WARM_UP
from bench.drafters.rows import Arrangement, Row, adjustment
from bench.drafters.usage import Usage, free_port, read
from bench.results import per, ratio
from bench.system import Plan, Progress, RunningSystem, system

_WARM_UP_TOKENS = 24


@dataclass(slots=True)
class Taken:
    """The answers of one arm, and what the fleet took for them."""

    samples: list[Sample] = field(default_factory=list)
    usage: Usage = field(default_factory=Usage)

    @property
    def rate(self) -> float:
        """Tokens per second, prompts included."""
        tokens = sum(sample.tokens for sample in self.samples)
        return per(tokens, sum(sample.seconds for sample in self.samples))


async def measure(
    plan: Plan,
    row: Row,
    arrangement: Arrangement,
    progress: Progress,
    *,
    temperatures: Mapping[float, int],
    draft_model: str | None,
    answers: dict[Question, tuple[int, ...]],
) -> dict[str, Any]:
    """Figures of a row in an arrangement. `temperatures`: how many of the questions at each.

    `answers` gets the plain greedy ones. Raises what `system` raises.
    """
    port = free_port()
    adjust = adjustment(row, arrangement, model=plan.model.folder, draft_model=draft_model, metrics_port=port)
    made: dict[str, Any] = {}
    async with system(plan, progress, adjust=adjust) as running:
        for temperature, count in temperatures.items():
            what = f"{row.name}, {arrangement}"
            taken = await _answer(running, port, plan, count, temperature, what, progress)
            asked = plan.questions[:count]
            made[f"{temperature:g}"] = _figures(taken, [each.task for each in asked])
            if not temperature:
                plain = zip(asked, taken[PLAIN].samples, strict=True)
                answers.update((question, sample.token_ids) for question, sample in plain)
    return made


async def plain_answers(plan: Plan, progress: Progress) -> dict[Question, tuple[int, ...]]:
    """Plain greedy answers to all questions, as ids. Raises what `system` raises."""
    made: dict[Question, tuple[int, ...]] = {}
    async with system(plan, progress) as running:
        arm = PacelineArm(running.client, plan, speculation=False)
        for number, question in enumerate(plan.questions):
            progress("plain answers", number, len(plan.questions))
            made[question] = (await arm.answer(question.text, plan.max_tokens)).token_ids
    return made


async def _answer(
    running: RunningSystem,
    metrics_port: int,
    plan: Plan,
    count: int,
    temperature: float,
    what: str,
    progress: Progress,
) -> dict[str, Taken]:
    arms = {
        name: PacelineArm(running.client, plan, speculation=name == SPECULATIVE, temperature=temperature)
        for name in (PLAIN, SPECULATIVE)
    }
    taken = {name: Taken() for name in arms}
    for arm in arms.values():
        await arm.answer(WARM_UP, min(_WARM_UP_TOKENS, plan.max_tokens))
    for number, question in enumerate(plan.questions[:count]):
        progress(f"{what}, T = {temperature:g}", number, count)
        order = list(arms)[:: 1 if number % 2 == 0 else -1]
        for name in order:
            before = await read(running, metrics_port)
            taken[name].samples.append(await arms[name].answer(question.text, plan.max_tokens))
            taken[name].usage += await read(running, metrics_port) - before
    return taken


def _figures(taken: Mapping[str, Taken], tasks: Sequence[str]) -> dict[str, Any]:
    plain, drafted = taken[PLAIN], taken[SPECULATIVE]
    pairs = list(zip(plain.samples, drafted.samples, strict=True))
    usage = drafted.usage
    return {
        "prompts": len(pairs),
        "identical": sum(one.token_ids == two.token_ids and one.text == two.text for one, two in pairs),
        "acceptance_length": round(acceptance_length(drafted.samples), 3),
        "acceptance_length_by_task": {
            task: round(acceptance_length(samples), 3)
            for task in TASKS
            if (samples := [each for each, its in zip(drafted.samples, tasks, strict=True) if its == task])
        },
        "nodes_per_step": ratio(usage.drafted, usage.steps),
        "verifier_ms_per_token": round(1e3 * per(usage.step_seconds, usage.tokens), 3),
        "plain_verifier_ms_per_token": round(1e3 * per(plain.usage.step_seconds, plain.usage.tokens), 3),
        "drafter_ms_per_token": round(1e3 * per(usage.drafter_seconds, usage.tokens), 3),
        "bytes_up_per_token": round(per(usage.bytes_up, usage.tokens), 1),
        "bytes_down_per_token": round(per(usage.bytes_down, usage.tokens), 1),
        "tokens_per_second": round(drafted.rate, 2),
        "plain_tokens_per_second": round(plain.rate, 2),
        "over_plain": ratio(drafted.rate, plain.rate),
    }


def acceptance_length(samples: Sequence[Sample]) -> float:
    """Committed tokens per step of some answers."""
    receipts = [sample.receipt for sample in samples if sample.receipt is not None]
    return per(sum(each.committed_tokens for each in receipts), sum(each.steps for each in receipts))
