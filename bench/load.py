"""Throughput under load, speculation on against off: closed-loop sessions, the arms in turns."""

from __future__ import annotations

import asyncio
import itertools
import math
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from bench.arms import PLAIN, SPECULATIVE, TIMEOUT_S
from bench.dataset import Question
from bench.results import Document, quantile
from bench.system import Plan, Progress, system
from paceline.client import Chunk, GatewayClient

# Before a window opens every session has its first token, and this has passed.
RAMP_S = 2.0


@dataclass(slots=True)
class Window:
    """What clients saw in one window. It opens when all sessions decode."""

    seconds: float
    waiting: int
    begin: float = math.inf
    tokens: int = 0
    # Seconds between two arrivals of one session, per token that the later one brought.
    gaps: list[float] = field(default_factory=list)
    firsts: list[float] = field(default_factory=list)

    @property
    def rate(self) -> float:
        """Tokens per second of all sessions together."""
        return self.tokens / self.seconds

    @property
    def end(self) -> float:
        """When it closes."""
        return self.begin + self.seconds

    def decoding(self) -> None:
        """One more of the sessions that it waits for has its first token."""
        self.waiting -= 1
        if self.waiting == 0:
            self.begin = time.perf_counter() + RAMP_S


async def measure(
    plan: Plan, progress: Progress, *, concurrencies: Sequence[int], window_s: float, rounds: int
) -> Document:
    """Rates and latencies of both arms at each concurrency. Raises what `system` raises."""
    rows: list[dict[str, Any]] = []
    done, windows_of_all = 0, len(concurrencies) * rounds * 2
    async with system(plan, progress) as client:
        for concurrency in concurrencies:
            windows: dict[str, list[Window]] = {PLAIN: [], SPECULATIVE: []}
            for number in range(rounds):
                # Both arms read the same questions; who begins changes from round to round.
                order = (PLAIN, SPECULATIVE) if number % 2 == 0 else (SPECULATIVE, PLAIN)
                for arm in order:
                    progress(f"{concurrency} sessions: {arm}", done, windows_of_all)
                    questions = itertools.cycle(plan.questions[number % len(plan.questions) :])
                    windows[arm].append(
                        await _window(client, plan, questions, concurrency, arm == SPECULATIVE, window_s)
                    )
                    done += 1
            rows.append(_row(concurrency, windows))
    return {
        "speculation_on_over_off": {str(row["concurrency"]): row["on_over_off"] for row in rows},
        "least_on_over_off": min(row["on_over_off"] for row in rows),
        "rows": rows,
    }


async def _window(
    client: GatewayClient,
    plan: Plan,
    questions: Iterator[Question],
    concurrency: int,
    speculation: bool,
    window_s: float,
) -> Window:
    seen = Window(seconds=window_s, waiting=concurrency)

    async def session() -> None:
        first = True
        while time.perf_counter() < seen.end:
            await _answer(client, plan, next(questions), speculation, seen, first=first)
            first = False

    async with asyncio.TaskGroup() as group:
        for _ in range(concurrency):
            group.create_task(session())
    return seen


async def _answer(
    client: GatewayClient,
    plan: Plan,
    question: Question,
    speculation: bool,
    seen: Window,
    *,
    first: bool,
) -> None:
    generation = plan.generation(question.text, speculation=speculation)
    asked = time.perf_counter()
    last: float | None = None
    async for event in client.generate(generation, timeout_s=TIMEOUT_S):
        now = time.perf_counter()
        if now >= seen.end:
            return  # leaving the stream cancels the session
        if not isinstance(event, Chunk) or not event.token_ids:
            continue
        if first and last is None:
            seen.decoding()
        if now >= seen.begin:
            seen.tokens += len(event.token_ids)
            if last is None:
                seen.firsts.append(now - asked)
            else:
                seen.gaps += [(now - last) / len(event.token_ids)] * len(event.token_ids)
        last = now


def _row(concurrency: int, windows: dict[str, list[Window]]) -> dict[str, Any]:
    plain, speculative = windows[PLAIN], windows[SPECULATIVE]
    ratios = [on.rate / off.rate for on, off in zip(speculative, plain, strict=True)]
    return {
        "concurrency": concurrency,
        "on_over_off": round(statistics.mean(ratios), 3),
        # The run's noise: the ratio of each round.
        "on_over_off_by_round": [round(ratio, 3) for ratio in ratios],
        **{
            name: {
                "tokens_per_second": round(statistics.mean(window.rate for window in arm), 1),
                "seconds_per_token_median": quantile([g for window in arm for g in window.gaps], 0.5),
                "seconds_per_token_p99": quantile([g for window in arm for g in window.gaps], 0.99),
                "first_token_seconds_median": quantile([f for window in arm for f in window.firsts], 0.5),
            }
            for name, arm in (("plain", plain), ("speculative", speculative))
        },
    }
