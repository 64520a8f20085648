"""End tasks without losing one's own cancellation."""

from __future__ import annotations

import asyncio
from typing import Any


async def cancel_and_wait(*tasks: asyncio.Task[Any]) -> None:
    """Cancel tasks and wait for their ends. Raises what one of them failed with.

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
