"""Discovery that blocks, on a thread of its own."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Callable
from contextlib import suppress

from gateway.discovery.base import Endpoints

# Calls its first argument with the pods whenever it has found them out, until the event is set.
Search = Callable[[Callable[[Endpoints], None], threading.Event], None]


async def told_by(search: Search) -> AsyncGenerator[Endpoints, None]:
    """What `search` finds on a daemon thread, without repetitions: of what came meanwhile only the newest.

    A daemon thread, as a look-up or a request that nobody answers must not hold the process up at its end.
    """
    loop = asyncio.get_running_loop()
    news: asyncio.Queue[Endpoints] = asyncio.Queue()
    stop = threading.Event()

    def tell(found: Endpoints) -> None:
        with suppress(RuntimeError):  # The loop is closed.
            loop.call_soon_threadsafe(news.put_nowait, found)

    threading.Thread(target=search, args=(tell, stop), name="discovery", daemon=True).start()
    last: Endpoints | None = None
    try:
        while True:
            found = await news.get()
            while not news.empty():
                found = news.get_nowait()
            if found != last:
                last = found
                yield found
    finally:
        stop.set()
