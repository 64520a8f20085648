"""Worst gap between tokens of decoding sessions while a long prompt is read, in steps."""

from __future__ import annotations

import asyncio
import statistics
import time
from itertools import pairwise

from bench.arms import arrivals
from bench.results import Document
from bench.system import BenchError, Plan, Progress, system
from paceline.client import GatewayClient, Generation

# Undisturbed decoding before the prompt arrives, the first of them not counted.
_QUIET_S = 6.0
_SETTLE_S = 2.0
# Sampled texts go on where greedy ones would end.
_TEMPERATURE = 1.0
_SENTENCE = "The harbour of the old town was quiet that morning, and {} ships lay at anchor. "
_SENTENCE_TOKENS = 19


async def measure(
    plan: Plan, progress: Progress, *, sessions: int, prompt_tokens: int, speculation: bool
) -> Document:
    """Gaps before and after the prompt. Raises `BenchError` and what `system` raises."""

    def request(text: str, max_tokens: int | None = None) -> Generation:
        return plan.generation(text, speculation=speculation, temperature=_TEMPERATURE, max_tokens=max_tokens)

    seen: list[list[float]] = [[] for _ in range(sessions)]
    async with system(plan, progress) as running:
        client = running.client
        progress(f"{sessions} sessions decode")
        readers = [
            asyncio.create_task(_read(client, request(question.text), times))
            for question, times in zip(plan.questions, seen, strict=False)
        ]
        await asyncio.sleep(_SETTLE_S + _QUIET_S)
        long_prompt = "".join(_SENTENCE.format(number) for number in range(prompt_tokens // _SENTENCE_TOKENS))
        first: list[float] = []
        sent = time.perf_counter()
        await _read(client, request(long_prompt, max_tokens=1), first)
        answered = first[0]
        await asyncio.sleep(1.0)
        for reader in readers:
            reader.cancel()
        await asyncio.gather(*readers, return_exceptions=True)
    quiet = [gap for times in seen for gap in _gaps(times, sent - _QUIET_S, sent)]
    disturbed = [gap for times in seen for gap in _gaps(times, sent, answered + 0.5)]
    if not quiet or not disturbed:
        raise BenchError("the sessions ended before the prompt was answered: ask for more tokens")
    step = statistics.median(quiet)
    return {
        "worst_gap_over_step": round(max(disturbed) / step, 2),
        "median_gap_over_step": round(statistics.median(disturbed) / step, 2),
        "step_seconds": round(step, 4),
        "worst_gap_seconds": round(max(disturbed), 4),
        "worst_undisturbed_gap_seconds": round(max(quiet), 4),
        "prompt_seconds": round(answered - sent, 2),
    }


async def _read(client: GatewayClient, generation: Generation, times: list[float]) -> None:
    async for now, _ in arrivals(client, generation):
        times.append(now)


def _gaps(times: list[float], begin: float, end: float) -> list[float]:
    """Gaps that overlap [begin, end]."""
    return [after - before for before, after in pairwise(times) if after >= begin and before <= end]
