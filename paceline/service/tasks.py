"""Wait for tasks to end without losing one's own cancellation, and for work to end within a grace."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Any

_POLL_SECONDS = 0.05


async def cancel_and_wait(*tasks: asyncio.Task[Any]) -> None:
    """Cancel tasks and wait until they have ended. Raises the exception of one that failed.

    Whoever is cancelled while it waits is told: `await` of a cancelled task under a `suppress` would take
    that for the task's own end, and its caller would go on after all.
    """
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks)
    for task in tasks:
        if not task.cancelled():
            task.result()


async def let_end(busy: Callable[[], bool], grace_seconds: float) -> None:
    """Return when `busy` is false, or when the grace is over. A draining service waits like this."""
    with suppress(TimeoutError):
        async with asyncio.timeout(grace_seconds):
            while busy():  # noqa: ASYNC110 - it ends in many places, and a drain is rare
                await asyncio.sleep(_POLL_SECONDS)
