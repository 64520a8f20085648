"""Ends a session's events when its client disconnects."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing, suppress
from typing import TypeVar

from fastapi import Request
from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from gateway.errors import TIMEOUT, RequestError

T = TypeVar("T")


class ClientGoneError(Exception):
    """The HTTP client has closed its connection."""


class EventStream(StreamingResponse):
    """Server-sent events. Closes their source at its end, which Starlette leaves to the garbage collector."""

    def __init__(self, parts: AsyncGenerator[bytes, None], headers: Mapping[str, str]) -> None:
        """`parts`: complete events, as bytes."""
        super().__init__(
            parts,
            media_type="text/event-stream",
            # Otherwise nginx holds events back until its buffer is full.
            headers={"cache-control": "no-cache", "x-accel-buffering": "no", **headers},
        )
        self._parts = parts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events until they end or the client is gone."""
        async with aclosing(self._parts):
            await super().__call__(scope, receive, send)


async def until_disconnect(
    events: AsyncIterator[T],
    request: Request,
    deadline: float | None = None,
    *,
    idle_seconds: float = math.inf,
) -> AsyncGenerator[T | None, None]:
    """The same events, and None whenever none has come for `idle_seconds`.

    When the client disconnects, `events` is closed and `ClientGoneError` raised; at `deadline`, on the
    monotonic clock, the same with `RequestError`. Both are noticed at once. The body must have been read.
    """
    gone = asyncio.ensure_future(_disconnected(request))
    getting: asyncio.Task[T] | None = None
    try:
        while True:
            if getting is None:
                getting = asyncio.create_task(_next(events))
            left = math.inf if deadline is None else max(0.0, deadline - time.monotonic())
            patience = min(left, idle_seconds)
            await asyncio.wait(
                {getting, gone},
                timeout=None if patience == math.inf else patience,
                return_when=asyncio.FIRST_COMPLETED,
            )
            if getting.done():
                try:
                    event = getting.result()
                except StopAsyncIteration:
                    return
                getting = None
                yield event
            elif gone.done():
                raise ClientGoneError
            elif left <= idle_seconds:
                raise RequestError(TIMEOUT, "the request's time is over")
            else:
                yield None
    finally:
        gone.cancel()
        if getting is not None and not getting.done():
            getting.cancel()
            with suppress(asyncio.CancelledError, StopAsyncIteration):
                await getting
        # Shielded: a server that cancels this repeatedly must not keep the session from closing.
        await asyncio.shield(asyncio.create_task(events.aclose()))  # type: ignore[attr-defined]


async def _next(events: AsyncIterator[T]) -> T:
    return await anext(events)


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
