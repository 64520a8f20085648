"""The proxy that makes a way longer: bytes arrive whole, in order, and not before their time."""

from __future__ import annotations

import asyncio
import time

from bench.drafters.link import delaying_proxy
from paceline.addresses import parse_address
from paceline.local.plan import HOST


async def _through(proxy: str, port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    host, proxy_port = parse_address(proxy)
    reader, writer = await asyncio.open_connection(host, proxy_port)
    writer.write(f"CONNECT {HOST}:{port} HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode())
    assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")
    return reader, writer


async def test_bytes_arrive_in_order_and_later() -> None:
    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(1 << 16):
            writer.write(data)
        writer.write_eof()

    server = await asyncio.start_server(echo, HOST, 0)
    async with server, delaying_proxy(0.1) as proxy:
        reader, writer = await _through(proxy.address, server.sockets[0].getsockname()[1])
        sent = b"".join(bytes([number]) * 1000 for number in range(200))
        began = time.perf_counter()
        writer.write(sent)
        writer.write_eof()
        assert await reader.read(-1) == sent
        assert time.perf_counter() - began >= 0.1
        writer.close()
