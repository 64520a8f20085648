"""A window of load: sessions in closed or open loop, and what their clients measure."""

from __future__ import annotations

import asyncio
import math
import statistics
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass, field
from random import Random

# Closed: before a window opens every session has its first token, and this has passed.
RAMP_S = 2.0
# Open: requests come for so long before one counts.
OPEN_RAMP_S = 5.0
# Open: how long after the window its requests may take to be answered.
DRAIN_S = 30.0

# Asks the next question and tells when tokens come (`time.perf_counter`), and how many.
Ask = Callable[[], AsyncGenerator[tuple[float, int]]]


@dataclass(slots=True)
class Window:
    """What clients saw. Tokens count when they arrive between `begin` and `end`."""

    seconds: float
    begin: float = math.inf
    tokens: int = 0
    # Seconds between two arrivals of one session, per token that the later one brought.
    gaps: list[float] = field(default_factory=list)
    # Seconds from a request to its first token.
    firsts: list[float] = field(default_factory=list)
    # Open: requests that came in the window, and how many of them had no end within `DRAIN_S`.
    requests: int = 0
    unfinished: int = 0

    @property
    def rate(self) -> float:
        """Tokens per second of all sessions together."""
        return self.tokens / self.seconds

    @property
    def session_rate(self) -> float:
        """Tokens per second of one session after its first; 0 where none came."""
        return 1 / statistics.mean(self.gaps) if self.gaps else 0.0

    @property
    def end(self) -> float:
        """When it closes."""
        return self.begin + self.seconds

    def add_latency(self, asked: float, last: float | None, now: float, tokens: int) -> None:
        """Tokens of a request of time `asked` came; those before them at `last`, if any did."""
        if last is None:
            self.firsts.append(now - asked)
        else:
            self.gaps += [(now - last) / tokens] * tokens


async def closed(ask: Ask, sessions: int, seconds: float, *, ramp_s: float = RAMP_S) -> Window:
    """So many sessions, each asking anew as soon as it is answered. The window opens when all decode."""
    seen = Window(seconds)
    waiting = sessions

    async def session() -> None:
        nonlocal waiting
        begun = False
        while time.perf_counter() < seen.end:
            asked, last = time.perf_counter(), None
            async with aclosing(ask()) as arrivals:
                async for now, tokens in arrivals:
                    if now >= seen.end:
                        return  # leaving the stream cancels the session
                    if not begun:
                        begun = True
                        waiting -= 1
                        if waiting == 0:
                            seen.begin = now + ramp_s
                    if now >= seen.begin:
                        seen.tokens += tokens
                        seen.add_latency(asked, last, now, tokens)
                    last = now

    async with asyncio.TaskGroup() as group:
        for _ in range(sessions):
            group.create_task(session())
    return seen


async def poisson(
    ask: Ask, rate: float, seconds: float, *, seed: int, ramp_s: float = OPEN_RAMP_S, drain_s: float = DRAIN_S
) -> Window:
    """Requests at random times, `rate` a second, whether or not those before are answered.

    The same seed gives the same times. Latencies are of the requests that came in the window, to their end.
    """
    random = Random(seed)
    at = time.perf_counter()
    seen = Window(seconds, begin=at + ramp_s)

    async def request(*, counts: bool) -> None:
        asked, last = time.perf_counter(), None
        seen.requests += counts
        seen.unfinished += counts
        async with aclosing(ask()) as arrivals:
            async for now, tokens in arrivals:
                if seen.begin <= now < seen.end:
                    seen.tokens += tokens
                if counts:
                    seen.add_latency(asked, last, now, tokens)
                last = now
        seen.unfinished -= counts

    running: list[asyncio.Task[None]] = []
    try:
        while (at := at + random.expovariate(rate)) < seen.end:
            await asyncio.sleep(at - time.perf_counter())
            running.append(asyncio.create_task(request(counts=at >= seen.begin)))
        if running:
            done, _ = await asyncio.wait(running, timeout=drain_s)
            for task in done:
                task.result()
    finally:
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
    return seen
