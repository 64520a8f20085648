"""Whether a text is a function of model, prompt, parameters and seed alone, through the whole system."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from typing import Any

from rich import box
from rich.table import Table

from bench.arms import PLAIN, SPECULATIVE, TRANSFORMERS, Arm, PacelineArm, transformers_arm
from bench.dataset import Question
from bench.results import Document
from bench.system import Plan, Progress, system

TEMPERATURES = (0.0, 0.8)
Texts = list[tuple[int, ...]]


async def measure(plan: Plan, progress: Progress, *, concurrencies: Sequence[int]) -> Document:
    """Compare token ids and count the prompts whose answers are the same, for each comparison.

    Greedy float32 text is also compared with transformers', the only one that can be expected to be
    another engine's. Raises what `system` and the arms raise.
    """
    comparisons: dict[str, dict[str, int]] = {}
    async with AsyncExitStack() as stack:
        reference: Arm | None = None
        if plan.dtype == "float32":
            reference = await stack.enter_async_context(transformers_arm(plan, progress))
        client = (await stack.enter_async_context(system(plan, progress))).client
        for temperature in TEMPERATURES:
            plain, speculative = (
                PacelineArm(client, plan, speculation=on, temperature=temperature) for on in (False, True)
            )
            name = f"temperature {temperature}"
            progress(f"{name}: plain, one at a time")
            expected = await _texts(plain, plan, 1)
            asked: list[tuple[str, Arm, int]] = []
            if temperature == 0 and reference is not None:
                asked.append((TRANSFORMERS, reference, 1))
            for concurrency in concurrencies:
                asked += [(PLAIN, plain, concurrency)] if concurrency > 1 else []
                asked.append((SPECULATIVE, speculative, concurrency))
            for kind, arm, concurrency in asked:
                progress(f"{name}: {kind}, {concurrency} at once")
                texts = await _texts(arm, plan, concurrency)
                label = f"{kind} at concurrency {concurrency} equals plain alone, {name}"
                same = sum(map(tuple.__eq__, expected, texts))
                comparisons[label] = {"of": len(expected), "identical": same}
                progress(f"{label}: {same} of {len(expected)}")
    return {
        "identical": {
            "of": sum(row["of"] for row in comparisons.values()),
            "identical": sum(row["identical"] for row in comparisons.values()),
        },
        "comparisons": comparisons,
    }


def table(document: Mapping[str, Any]) -> Table:
    """One row per comparison."""
    made = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    made.add_column("comparison")
    made.add_column("identical", justify="right")
    for label, row in document["comparisons"].items():
        made.add_row(label, f"{row['identical']} of {row['of']}")
    return made


async def _texts(arm: Arm, plan: Plan, concurrency: int) -> Texts:
    gate = asyncio.Semaphore(concurrency)

    async def one(question: Question) -> tuple[int, ...]:
        async with gate:
            return (await arm.answer(question.text, plan.max_tokens)).token_ids

    return list(await asyncio.gather(*(one(question) for question in plan.questions)))
