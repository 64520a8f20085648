"""What a long prompt does to sessions that are decoding: their worst gap between tokens, in steps."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Callable
from itertools import pairwise
from typing import Any

from bench.arms import ArmFailed
from bench.decode import BenchFailed, Plan, system
from paceline.client import ChatMessage, Chunk, GatewayClient, GatewayError, Generation
from paceline.local_process import ServiceDied
from paceline.local_redis import RedisMissing

# Undisturbed decoding before the prompt arrives, the first of them not counted.
_QUIET_S = 6.0
_SETTLE_S = 2.0
_TIMEOUT_S = 600.0
_SENTENCE = "The harbour of the old town was quiet that morning, and {} ships lay at anchor. "


def run(
    plan: Plan, *, sessions: int, prompt_tokens: int, speculation: bool, progress: Callable[[str], None]
) -> dict[str, Any]:
    """The JSON document. Raises `BenchFailed`."""
    try:
        return asyncio.run(_run(plan, sessions, prompt_tokens, speculation, progress))
    except (ArmFailed, GatewayError, RedisMissing, ServiceDied) as error:
        raise BenchFailed(f"{error}\nlogs: {plan.logs}") from error


async def _run(
    plan: Plan, sessions: int, prompt_tokens: int, speculation: bool, progress: Callable[[str], None]
) -> dict[str, Any]:
    async with system(plan, lambda what, _done: progress(what)) as (reference, client):
        await reference.stop()
        progress(f"{sessions} sessions decode")
        arrivals: list[list[float]] = [[] for _ in range(sessions)]
        readers = [
            asyncio.create_task(_read(client, plan, plan.questions[index].text, speculation, arrivals[index]))
            for index in range(sessions)
        ]
        await asyncio.sleep(_SETTLE_S + _QUIET_S)
        sent = time.perf_counter()
        progress(f"a prompt of about {prompt_tokens} tokens arrives")
        long_prompt = "".join(_SENTENCE.format(number) for number in range(prompt_tokens // 19))
        first: list[float] = []
        await _read(client, plan, long_prompt, speculation, first, max_tokens=1)
        answered = first[0]
        await asyncio.sleep(1.0)
        for reader in readers:
            reader.cancel()
        await asyncio.gather(*readers, return_exceptions=True)
    quiet = [gap for times in arrivals for gap in _gaps(times, sent - _QUIET_S, sent)]
    disturbed = [gap for times in arrivals for gap in _gaps(times, sent, answered + 0.5)]
    if not quiet or not disturbed:
        raise BenchFailed("the sessions ended before the prompt was answered: ask for more tokens")
    step = statistics.median(quiet)
    return {
        "worst_gap_over_step": round(max(disturbed) / step, 2),
        "median_gap_over_step": round(statistics.median(disturbed) / step, 2),
        "step_seconds": round(step, 4),
        "worst_gap_seconds": round(max(disturbed), 4),
        "worst_undisturbed_gap_seconds": round(max(quiet), 4),
        "prompt_seconds": round(answered - sent, 2),
        "config": {
            "model": plan.model.name,
            "sessions": sessions,
            "prompt_tokens": prompt_tokens,
            "speculation": speculation,
            "dtype": plan.dtype,
            "threads": plan.threads,
        },
    }


async def _read(
    client: GatewayClient,
    plan: Plan,
    text: str,
    speculation: bool,
    arrivals: list[float],
    max_tokens: int | None = None,
) -> None:
    chat = plan.model.can_chat
    generation = Generation(
        text=None if chat else text,
        chat=(ChatMessage("user", text),) if chat else (),
        max_tokens=max_tokens or plan.max_tokens,
        temperature=1.0,
        seed=1,
        speculation=speculation,
    )
    async for event in client.generate(generation, timeout_s=_TIMEOUT_S):
        if isinstance(event, Chunk) and event.token_ids:
            now = time.perf_counter()
            arrivals.append(now)


def _gaps(times: list[float], begin: float, end: float) -> list[float]:
    """Gaps that overlap [begin, end]."""
    return [after - before for before, after in pairwise(times) if after >= begin and before <= end]
