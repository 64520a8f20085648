"""A TCP proxy that a test may silence or cut: a partition that needs no rights."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Callable
from enum import StrEnum
from types import TracebackType
from typing import Self

from paceline.local.plan import HOST


class Cut(StrEnum):
    """What a connection that is cut off does."""

    # Stays open and says nothing; what was on its way arrives once it is healed.
    STALL = "stall"
    # Is reset.
    RESET = "reset"


class _End(asyncio.Protocol):
    """One end of a connection: what it reads, the other end writes."""

    def __init__(self) -> None:
        self.other: _End | None = None
        self.transport: asyncio.Transport | None = None
        # Why it does not read: it is cut off, or the other end's peer is slow.
        self._silent = False
        self._full = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self._read_or_not()

    def data_received(self, data: bytes) -> None:
        if self.other is not None and self.other.transport is not None:
            self.other.transport.write(data)

    def connection_lost(self, error: Exception | None) -> None:
        if self.other is not None and self.other.transport is not None:
            self.other.transport.close()

    def pause_writing(self) -> None:
        if self.other is not None:
            self.other.wait(full=True)

    def resume_writing(self) -> None:
        if self.other is not None:
            self.other.wait(full=False)

    def wait(self, *, silent: bool | None = None, full: bool | None = None) -> None:
        self._silent = self._silent if silent is None else silent
        self._full = self._full if full is None else full
        self._read_or_not()

    def reset(self) -> None:
        """Let the peer see an RST, not an orderly end."""
        if self.transport is None:
            return
        held: socket.socket = self.transport.get_extra_info("socket")
        held.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.transport.abort()

    def _read_or_not(self) -> None:
        if self.transport is None or self.transport.is_closing():
            return
        # A peer's end is only seen while reading: a silent connection hides it, too.
        if self._silent or self._full:
            self.transport.pause_reading()
        else:
            self.transport.resume_reading()


class Connection:
    """One client's connection to the server behind the proxy."""

    def __init__(self, upstream: Callable[[], str], near: _End) -> None:
        self._upstream = upstream
        self._near = near
        self._far = _End()
        self._near.other, self._far.other = self._far, self._near
        self._connecting: asyncio.Task[None] | None = None

    @property
    def client_port(self) -> int:
        """The client's own port."""
        assert self._near.transport is not None
        port: int = self._near.transport.get_extra_info("peername")[1]
        return port

    @property
    def closed(self) -> bool:
        return self._near.transport is None or self._near.transport.is_closing()

    def cut(self, how: Cut | None) -> None:
        """Cut it off, or heal it."""
        if how is Cut.RESET:
            self._near.reset()
            self._far.reset()
            return
        for end in (self._near, self._far):
            end.wait(silent=how is Cut.STALL)
        if how is None and self._connecting is None and not self.closed:
            self._connecting = asyncio.create_task(self._connect())

    async def _connect(self) -> None:
        # Nothing is read before there is somewhere to write it.
        self._near.wait(full=True)
        loop = asyncio.get_running_loop()
        try:
            host, _, port = self._upstream().rpartition(":")
            await loop.create_connection(lambda: self._far, host, int(port))
        except OSError:
            self._near.reset()
            return
        self._near.wait(full=False)
        if self.closed:
            self._far.reset()


class Proxy:
    """Stands before servers. Use as an asynchronous context manager."""

    def __init__(
        self,
        upstream: str | Callable[[], str],
        how: Callable[[Connection], Cut | None] = lambda _: None,
        *,
        host: str = HOST,
        port: int = 0,
    ) -> None:
        """`upstream`: host:port, or what says where a new connection goes; it raises `OSError` for nowhere.

        `how` says whether a new connection is cut. `host` and `port`: where to listen.
        """
        self._upstream = (lambda: upstream) if isinstance(upstream, str) else upstream
        self._how = how
        self._at = host, port
        self._connections: list[Connection] = []
        self._server: asyncio.Server | None = None
        self.address = ""

    async def __aenter__(self) -> Self:
        self._server = await asyncio.get_running_loop().create_server(lambda: _Accepted(self), *self._at)
        self.address = f"{self._at[0]}:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._server.close()
        for connection in self.connections():
            connection.cut(Cut.RESET)

    def connections(self) -> list[Connection]:
        """Those that are open."""
        self._connections = [each for each in self._connections if not each.closed]
        return self._connections

    def accepted(self, near: _End) -> None:
        connection = Connection(self._upstream, near)
        self._connections.append(connection)
        connection.cut(self._how(connection))


class _Accepted(_End):
    """The end that a client has just opened."""

    def __init__(self, proxy: Proxy) -> None:
        super().__init__()
        self._proxy = proxy

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._proxy.accepted(self)
