"""End a session's events when its client goes away."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import suppress
from typing import TypeVar

from fastapi import Request

T = TypeVar("T")


class ClientGone(Exception):
    """The HTTP client has closed its connection."""


async def until_disconnect(events: AsyncIterator[T], request: Request) -> AsyncGenerator[T, None]:
    """The same events, until the client is gone: then `events` is closed and `ClientGone` raised.

    The body must have been read. Noticed at once, also while no event comes.
    """
    gone = asyncio.ensure_future(_disconnected(request))
    getting: asyncio.Task[T] | None = None
    try:
        while True:
            getting = asyncio.create_task(_next(events))
            await asyncio.wait({getting, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not getting.done():
                raise ClientGone
            try:
                event = getting.result()
            except StopAsyncIteration:
                return
            yield event
    finally:
        gone.cancel()
        if getting is not None and not getting.done():
            getting.cancel()
            with suppress(asyncio.CancelledError, StopAsyncIteration):
                await getting
        # Shielded: a server that cancels this over and over must not keep the session from closing.
        await asyncio.shield(asyncio.create_task(events.aclose()))  # type: ignore[attr-defined]


async def _next(events: AsyncIterator[T]) -> T:
    return await anext(events)


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
