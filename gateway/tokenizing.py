"""Threads that tokenise long prompts, key holders in turn."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from gateway.line import Line
from paceline.service.machine import usable_cores

T = TypeVar("T")

# About 50 ms of one core's work. Larger prompts never take the last thread.
_LARGE_CHARACTERS = 32_768
_THREADS = max(2, min(8, usable_cores()))


class Tokenizing:
    """A bounded pool. One thread takes no large prompts, so that small ones do not wait behind them."""

    def __init__(self, threads: int = _THREADS) -> None:
        """`threads`: at least two."""
        self._pool = ThreadPoolExecutor(threads, "tokenizing")
        self._free = threads
        self._small: Line[asyncio.Future[None]] = Line()
        self._large: Line[asyncio.Future[None]] = Line()
        self._numbers = itertools.count()

    async def run(self, holder: str, characters: int, work: Callable[[], T], *, until: float) -> T:
        """Run `work` when the holder's turn comes; returns or raises what it does.

        `work` runs to its end even if the caller is cancelled. Raises `TimeoutError` if its turn has not come
        by `until`, on the event loop's clock.
        """
        large = characters > _LARGE_CHARACTERS
        line = self._large if large else self._small
        number = next(self._numbers)
        loop = asyncio.get_running_loop()
        turn: asyncio.Future[None] = loop.create_future()
        line.join(holder, number, turn)
        self._serve()
        try:
            if not turn.done():
                async with asyncio.timeout_at(until):
                    await asyncio.wait({turn})
        except BaseException:
            line.leave(holder, number)
            if turn.done():
                self._release()
            raise
        running = loop.run_in_executor(self._pool, work)
        running.add_done_callback(lambda _: self._release())
        return await asyncio.shield(running)

    def _release(self) -> None:
        self._free += 1
        self._serve()

    def _serve(self) -> None:
        """Give out free threads, to small prompts first."""
        while self._free:
            line = self._small if len(self._small) else self._large
            turn = line.first()
            if turn is None or (line is self._large and self._free == 1):
                return
            line.serve()
            self._free -= 1
            turn.set_result(None)
