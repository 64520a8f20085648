"""A longer way between drafter and verifier: an HTTP proxy that hands on all bytes later."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass

from paceline.addresses import parse_address
from paceline.local.plan import HOST

_CHUNK = 1 << 16
_OPENED = b"HTTP/1.1 200 Connection established\r\n\r\n"


@dataclass(slots=True)
class Link:
    """The proxy's address, and the round trip in seconds, which may change while it runs."""

    address: str
    round_trip: float


@asynccontextmanager
async def delaying_proxy(round_trip: float) -> AsyncIterator[Link]:
    """A proxy for CONNECT; `round_trip` in seconds. Bandwidth is not limited."""
    tasks: set[asyncio.Task[None]] = set()
    link = Link("", round_trip)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        this = asyncio.current_task()
        assert this is not None
        tasks.add(this)
        try:
            with suppress(OSError, asyncio.IncompleteReadError):
                await _tunnel(reader, writer, link)
        finally:
            tasks.discard(this)
            writer.close()

    server = await asyncio.start_server(serve, HOST, 0)
    try:
        link.address = f"{HOST}:{server.sockets[0].getsockname()[1]}"
        yield link
    finally:
        server.close()
        for task in tasks:
            task.cancel()


async def _tunnel(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, link: Link) -> None:
    head = await reader.readuntil(b"\r\n\r\n")
    host, port = parse_address(head.split()[1].decode("ascii"))
    far_reader, far_writer = await asyncio.open_connection(host, port)
    writer.write(_OPENED)
    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(_hand_on(reader, far_writer, link))
            group.create_task(_hand_on(far_reader, writer, link))
    except* OSError:
        pass
    finally:
        far_writer.close()


async def _hand_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, link: Link) -> None:
    """Write what is read, half a round trip later and in order, until the reader's end."""
    loop = asyncio.get_running_loop()
    waiting: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()

    async def write() -> None:
        while True:
            due, data = await waiting.get()
            await asyncio.sleep(due - loop.time())
            if not data:
                writer.write_eof()
                return
            writer.write(data)
            await writer.drain()

    writing = asyncio.create_task(write())
    try:
        while True:
            data = await reader.read(_CHUNK)
            waiting.put_nowait((loop.time() + link.round_trip / 2, data))
            if not data:
                break
        await writing
    finally:
        writing.cancel()
