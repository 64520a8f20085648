"""Whether a text is a function of model, prompt, parameters and seed alone, through the whole system."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

from bench.arms import Arm, ArmFailed, PacelineArm
from bench.dataset import Question
from bench.decode import BenchFailed, Plan, system
from paceline.client import GatewayError
from paceline.local_process import ServiceDied
from paceline.local_redis import RedisMissing

TEMPERATURES = (0.0, 0.8)
Texts = list[tuple[int, ...]]


def run(plan: Plan, concurrencies: Sequence[int], progress: Callable[[str], None]) -> dict[str, Any]:
    """Compare token ids: how many prompts of how many are the same, by comparison. Raises `BenchFailed`."""
    try:
        return asyncio.run(_run(plan, concurrencies, progress))
    except (ArmFailed, GatewayError, RedisMissing, ServiceDied) as error:
        raise BenchFailed(f"{error}\nlogs: {plan.logs}") from error


async def _run(plan: Plan, concurrencies: Sequence[int], progress: Callable[[str], None]) -> dict[str, Any]:
    comparisons: dict[str, dict[str, int]] = {}
    async with system(plan, lambda what, _done: progress(what)) as (reference, client):
        for temperature in TEMPERATURES:
            name = f"temperature {temperature}"
            plain = PacelineArm(client, speculation=False, chat=plan.model.can_chat, temperature=temperature)
            speculative = PacelineArm(
                client, speculation=True, chat=plan.model.can_chat, temperature=temperature
            )
            progress(f"{name}: plain, one at a time")
            expected = await _texts(plain, plan.questions, plan.max_tokens, 1)
            # Only float32 text can be expected to be another engine's.
            if temperature == 0 and plan.dtype == "float32":
                progress(f"{name}: transformers")
                theirs = await _texts(reference, plan.questions, plan.max_tokens, 1)
                comparisons["plain equals transformers, greedy"] = _same(expected, theirs)
            for concurrency in concurrencies:
                for kind, arm in (("plain", plain), ("speculative", speculative)):
                    if arm is plain and concurrency == 1:
                        continue
                    progress(f"{name}: {kind}, {concurrency} at once")
                    texts = await _texts(arm, plan.questions, plan.max_tokens, concurrency)
                    label = f"{kind} at concurrency {concurrency} equals plain alone, {name}"
                    comparisons[label] = _same(expected, texts)
    return {
        "identical": {
            "of": sum(row["of"] for row in comparisons.values()),
            "identical": sum(row["identical"] for row in comparisons.values()),
        },
        "comparisons": comparisons,
        "config": {
            "model": plan.model.name,
            "prompts": len(plan.questions),
            "max_tokens": plan.max_tokens,
            "dtype": plan.dtype,
            "threads": plan.threads,
            "concurrencies": list(concurrencies),
        },
    }


async def _texts(arm: Arm, questions: Sequence[Question], max_tokens: int, concurrency: int) -> Texts:
    gate = asyncio.Semaphore(concurrency)

    async def one(question: Question) -> tuple[int, ...]:
        async with gate:
            return (await arm.answer(question.text, max_tokens)).token_ids

    return list(await asyncio.gather(*(one(question) for question in questions)))


def _same(expected: Texts, texts: Texts) -> dict[str, int]:
    return {"of": len(expected), "identical": sum(map(tuple.__eq__, expected, texts))}
