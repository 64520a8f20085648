"""Let Hypothesis search, and count what it has tried."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from hypothesis import HealthCheck, given, note, seed, settings
from hypothesis import strategies as st

T = TypeVar("T")

# Cases by what was tried and how it was answered.
Tally = Counter[tuple[str, str]]


def explore(
    strategy: st.SearchStrategy[T],
    send: Callable[[T], str],
    *,
    cases: int,
    seeded: int,
    tally: Tally,
    name: str,
) -> None:
    """Let `send` answer so many cases; what it fails at is made small and raised."""

    @settings(max_examples=cases, database=None, deadline=None, suppress_health_check=list(HealthCheck))
    @seed(seeded)
    @given(strategy)
    def one(case: T) -> None:
        note(repr(case))
        tally[name, send(case)] += 1

    one()


class Loop:
    """An event loop in a thread of its own: Hypothesis calls plain functions."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="fuzz", daemon=True)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, T], seconds: float = 300.0) -> T:
        """What `work` gives. Raises `TimeoutError` when it takes longer."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(seconds)

    def close(self) -> None:
        """Stop it."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
