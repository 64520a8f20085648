"""The proxy that faults are made with: it passes, falls silent and resets, at either end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from paceline.local.plan import HOST
from tests.proxy import Connection, Cut, Proxy
from tests.waiting import wait_until

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def _echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(100):
        writer.write(data)
    writer.close()


@asynccontextmanager
async def proxied(cut: list[Cut]) -> AsyncIterator[Proxy]:
    """An echo behind a proxy that cuts new connections off as `cut` says."""
    server = await asyncio.start_server(_echo, HOST, 0)
    address = f"{HOST}:{server.sockets[0].getsockname()[1]}"

    def how(connection: Connection) -> Cut | None:
        return cut[-1] if cut else None

    async with server, Proxy(address, how) as proxy:
        yield proxy


async def connect(proxy: Proxy) -> Streams:
    host, _, port = proxy.address.rpartition(":")
    return await asyncio.open_connection(host, int(port))


async def says(streams: Streams, text: bytes) -> bytes:
    reader, writer = streams
    writer.write(text)
    return await reader.readexactly(len(text))


async def is_silent(streams: Streams) -> bool:
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(says(streams, b"?"), 0.2)
    return True


async def test_what_is_on_its_way_arrives_when_the_silence_ends() -> None:
    async with proxied([]) as proxy:
        streams = await connect(proxy)
        assert await says(streams, b"hello") == b"hello"
        (connection,) = proxy.connections()
        connection.cut(Cut.STALL)
        assert await is_silent(streams)
        connection.cut(None)
        assert await streams[0].readexactly(1) == b"?"
        assert await says(streams, b"again") == b"again"


async def test_a_connection_made_in_silence_is_answered_when_it_ends() -> None:
    cut = [Cut.STALL]
    async with proxied(cut) as proxy:
        streams = await connect(proxy)
        assert await is_silent(streams)
        cut.clear()
        for connection in proxy.connections():
            connection.cut(None)
        assert await streams[0].readexactly(1) == b"?"


async def test_resets_reach_old_and_new_connections() -> None:
    cut: list[Cut] = []
    async with proxied(cut) as proxy:
        old = await connect(proxy)
        assert await says(old, b"hello") == b"hello"
        cut.append(Cut.RESET)
        for connection in proxy.connections():
            connection.cut(Cut.RESET)
        with pytest.raises(ConnectionResetError):
            await old[0].read(1)
        new = await connect(proxy)
        with pytest.raises(ConnectionResetError):
            await new[0].read(1)


async def test_a_peers_end_is_not_seen_in_silence_and_is_after_it() -> None:
    async with proxied([]) as proxy:
        reader, writer = await connect(proxy)
        assert await says((reader, writer), b"hello") == b"hello"
        (connection,) = proxy.connections()
        connection.cut(Cut.STALL)
        writer.close()
        await asyncio.sleep(0.1)
        assert proxy.connections() == [connection]
        connection.cut(None)
        await wait_until(lambda: not proxy.connections(), "the end is seen")
