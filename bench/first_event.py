"""Time that HTTP servers add to a first event, and their requests a second, over a kept-alive connection.

`python -m bench.first_event` compares, in turns: the gateway's protocol, the same without TCP_NODELAY (as
it was before), and uvicorn's own two.
"""

from __future__ import annotations

import asyncio
import json
import socket
import statistics
import time
from contextlib import suppress

from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from gateway.http.protocol import HttpProtocol
from gateway.http.server import HttpServer

_ROUNDS = 3
_STREAMS = 10
_WHOLE = 200
_REQUEST = b"POST %b HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"
_EVENT = b'data: {"text":"x"}\n\n'


class _Delayed(HttpProtocol):
    """A connection without TCP_NODELAY: a small write waits until the one before is acknowledged."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 0)


_PROTOCOLS: dict[str, type[asyncio.Protocol]] = {
    "gateway": HttpProtocol,
    "without TCP_NODELAY": _Delayed,
    "uvicorn httptools": HttpToolsProtocol,
    "uvicorn h11": H11Protocol,
}


async def _application(scope: Scope, receive: Receive, send: Send) -> None:
    await receive()
    if scope["path"] == "/whole":
        head = [(b"content-length", b"%d" % len(_EVENT))]
        await send({"type": "http.response.start", "status": 200, "headers": head})
        await send({"type": "http.response.body", "body": _EVENT})
        return
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await asyncio.sleep(0.001)
    await send({"type": "http.response.body", "body": _EVENT, "more_body": True})
    await send({"type": "http.response.body"})


async def _measure(protocol: type[asyncio.Protocol]) -> tuple[list[float], float]:
    """Seconds to the first event of each stream; requests a second."""
    server = HttpServer(_application, None, keep_alive_seconds=60, grace_seconds=1)
    server.config.http = protocol
    listener = socket.create_server(("127.0.0.1", 0))
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    reader, writer = await asyncio.open_connection(*listener.getsockname())
    firsts = []
    for _ in range(_STREAMS):
        begun = time.perf_counter()
        writer.write(_REQUEST % b"/stream")
        await reader.readuntil(_EVENT)
        firsts.append(time.perf_counter() - begun)
        await reader.readuntil(b"0\r\n\r\n")
    begun = time.perf_counter()
    for _ in range(_WHOLE):
        writer.write(_REQUEST % b"/whole")
        await reader.readuntil(_EVENT)
    rate = _WHOLE / (time.perf_counter() - begun)
    writer.close()
    with suppress(ConnectionError):
        await writer.wait_closed()
    server.should_exit = True
    await serving
    return firsts, rate


async def main() -> None:
    """Print a line of JSON for each protocol."""
    firsts: dict[str, list[float]] = {name: [] for name in _PROTOCOLS}
    rates: dict[str, list[float]] = {name: [] for name in _PROTOCOLS}
    for _ in range(_ROUNDS):
        for name, protocol in _PROTOCOLS.items():
            seen, rate = await _measure(protocol)
            firsts[name] += seen[1:]
            rates[name].append(rate)
    for name in _PROTOCOLS:
        first = round(statistics.median(firsts[name]) * 1000, 2)
        line = {"protocol": name, "first_event_ms": first, "requests_per_s": round(max(rates[name]))}
        print(json.dumps(line))


if __name__ == "__main__":
    asyncio.run(main())
