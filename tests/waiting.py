"""The only way a test may wait."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable


async def wait_until(predicate: Callable[[], bool], what: str, seconds: float = 30.0) -> None:
    """Return as soon as `predicate()` holds; fail with `what` when it does not within `seconds`."""
    end = time.monotonic() + seconds
    while not predicate():
        if time.monotonic() > end:
            raise AssertionError(f"waited {seconds} s in vain until {what}")
        await asyncio.sleep(0.005)
