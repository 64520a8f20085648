from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator

import pytest

from bench.windows import Window, closed, poisson


class Sessions:
    """Streams of two tokens an arrival, `arrivals` arrivals each, and how many are open at once."""

    def __init__(self, arrivals: int, pause_s: float = 0.005) -> None:
        self.arrivals = arrivals
        self.pause_s = pause_s
        self.open = 0
        self.most_open = 0
        self.asked: list[float] = []

    async def ask(self) -> AsyncGenerator[tuple[float, int]]:
        self.asked.append(time.perf_counter())
        self.open += 1
        self.most_open = max(self.most_open, self.open)
        try:
            for _ in range(self.arrivals):
                await asyncio.sleep(self.pause_s)
                yield time.perf_counter(), 2
        finally:
            self.open -= 1


async def test_closed_keeps_so_many_sessions_busy_and_leaves_none_open() -> None:
    sessions = Sessions(arrivals=4)
    seen = await closed(sessions.ask, 3, 0.2, ramp_s=0.02)
    assert sessions.most_open == 3
    assert sessions.open == 0
    assert seen.tokens > 0
    assert seen.tokens % 2 == 0
    # Every arrival in the window is a first one or has a gap for each of its tokens.
    assert 2 * len(seen.firsts) + len(seen.gaps) == seen.tokens


@pytest.mark.serial
async def test_poisson_asks_at_the_same_times_for_one_seed() -> None:
    async def times() -> list[float]:
        sessions = Sessions(arrivals=1)
        begun = time.perf_counter()
        seen = await poisson(sessions.ask, 50, 0.3, seed=4, ramp_s=0.1)
        assert 0 < seen.requests < len(sessions.asked)
        assert (seen.unfinished, sessions.open) == (0, 0)
        return [asked - begun for asked in sessions.asked]

    assert await times() == pytest.approx(await times(), abs=0.05)


async def test_poisson_counts_what_does_not_end() -> None:
    sessions = Sessions(arrivals=100_000)
    seen = await poisson(sessions.ask, 50, 0.2, seed=1, ramp_s=0, drain_s=0.05)
    assert seen.unfinished == seen.requests > 0
    assert sessions.open == 0


async def test_an_error_of_a_request_ends_a_window() -> None:
    async def broken() -> AsyncGenerator[tuple[float, int]]:
        raise ConnectionError("gone")
        yield

    with pytest.raises(ConnectionError):
        await poisson(broken, 50, 0.2, seed=1, ramp_s=0)
    with pytest.raises(ExceptionGroup):
        await closed(broken, 2, 0.2)


def test_rates_of_a_window() -> None:
    seen = Window(seconds=2.0, begin=0.0, tokens=8)
    seen.add_latency(0.0, None, 0.5, 1)
    seen.add_latency(0.0, 0.5, 0.9, 4)
    assert (seen.rate, seen.firsts, seen.gaps) == (4.0, [0.5], [0.1] * 4)
    assert seen.session_rate == pytest.approx(10.0)
    assert Window(seconds=1.0).session_rate == 0.0
