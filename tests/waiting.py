"""The only way a test may wait."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable


async def wait_until(
    predicate: Callable[[], bool] | Callable[[], Awaitable[bool]],
    what: str,
    seconds: float = 30.0,
    *,
    every: float = 0.005,
) -> None:
    """Return as soon as `predicate()` holds; fail with `what` when it does not within `seconds`.

    `every`: seconds between two looks, more where a look is work for what is looked at.
    """
    end = time.monotonic() + seconds
    while not await _holds(predicate):
        if time.monotonic() > end:
            raise AssertionError(f"waited {seconds} s in vain until {what}")
        await asyncio.sleep(every)


async def _holds(predicate: Callable[[], bool] | Callable[[], Awaitable[bool]]) -> bool:
    held = predicate()
    return held if isinstance(held, bool) else await held
