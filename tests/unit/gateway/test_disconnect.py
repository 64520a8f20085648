"""A client that goes away ends its events, wherever they are."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

import pytest
from starlette.types import Message

from gateway.http.disconnect import EventStream

SCOPE: dict[str, Any] = {"type": "http", "asgi": {"spec_version": "2.3"}}


class Source:
    """Events without end; notes when they are closed."""

    def __init__(self) -> None:
        self.closed = False

    async def events(self) -> AsyncGenerator[bytes, None]:
        try:
            while True:
                yield b"data: {}\n\n"
        finally:
            self.closed = True


async def test_events_are_closed_whose_client_goes_while_one_is_sent() -> None:
    source = Source()
    # Held, so that it is not the garbage collector who closes them.
    events = source.events()
    sending = asyncio.Event()

    async def receive() -> Message:
        await sending.wait()
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        if message["type"] == "http.response.body":
            sending.set()
            await asyncio.Event().wait()

    await EventStream(events, {})(SCOPE, receive, send)
    assert source.closed


async def test_events_are_closed_whose_server_is_stopped() -> None:
    source = Source()
    events = source.events()
    sending = asyncio.Event()

    async def receive() -> Message:
        await asyncio.Event().wait()
        raise AssertionError

    async def send(message: Message) -> None:
        if message["type"] == "http.response.body":
            sending.set()
            await asyncio.Event().wait()

    answering = asyncio.create_task(EventStream(events, {})(SCOPE, receive, send))
    await sending.wait()
    answering.cancel()
    with pytest.raises(asyncio.CancelledError):
        await answering
    assert source.closed
