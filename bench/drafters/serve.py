"""One row in one arrangement: the real system answers every question with drafts and without, in turns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from bench.arms import PLAIN, SPECULATIVE, PacelineArm, Sample
from bench.dataset import TASKS
from bench.decode import WARM_UP
from bench.drafters.rows import Arrangement, Row, adjustment
from bench.drafters.usage import Usage, read
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
) -> dict[str, Any]:
    """Figures of a row in an arrangement. `temperatures`: how many of the questions at each.

    Raises what `system` raises.
    """
    adjust = adjustment(row, arrangement, model=plan.model.folder, draft_model=draft_model)
    made: dict[str, Any] = {}
    async with system(plan, progress, adjust=adjust) as running:
        for temperature, count in temperatures.items():
            taken = await _answer(running, plan, count, temperature, f"{row.name}, {arrangement}", progress)
            made[f"{temperature:g}"] = _figures(taken, [each.task for each in plan.questions[:count]])
    return made


async def _answer(
    running: RunningSystem, plan: Plan, count: int, temperature: float, what: str, progress: Progress
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
            before = await read(running)
            taken[name].samples.append(await arms[name].answer(question.text, plan.max_tokens))
            taken[name].usage += await read(running) - before
    return taken


def _figures(taken: Mapping[str, Taken], tasks: Sequence[str]) -> dict[str, Any]:
    plain, drafted = taken[PLAIN], taken[SPECULATIVE]
    pairs = list(zip(plain.samples, drafted.samples, strict=True))
    usage = drafted.usage
    return {
        "prompts": len(pairs),
        "identical": sum(one.token_ids == two.token_ids and one.text == two.text for one, two in pairs),
        "acceptance_length": round(_length(drafted.samples), 3),
        "acceptance_length_by_task": {
            task: round(_length(samples), 3)
            for task in TASKS
            if (samples := [each for each, its in zip(drafted.samples, tasks, strict=True) if its == task])
        },
        "nodes_per_step": ratio(usage.drafted, usage.steps),
        "verifier_ms_per_token": round(1e3 * per(usage.step_seconds, usage.tokens), 3),
        "plain_verifier_ms_per_token": round(1e3 * per(plain.usage.step_seconds, plain.usage.tokens), 3),
        "drafter_ms_per_token": round(1e3 * per(usage.drafter_seconds, usage.tokens), 3),
        "tokens_per_second": round(drafted.rate, 2),
        "plain_tokens_per_second": round(plain.rate, 2),
        "over_plain": ratio(drafted.rate, plain.rate),
    }


def _length(samples: Sequence[Sample]) -> float:
    receipts = [sample.receipt for sample in samples if sample.receipt is not None]
    return per(sum(each.committed_tokens for each in receipts), sum(each.steps for each in receipts))
