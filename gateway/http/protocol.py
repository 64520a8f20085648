"""The HTTP/1.1 protocol of connections: bounds on request heads, and upgrades are ignored."""

from __future__ import annotations

import asyncio
import json
import socket
from enum import Enum, auto
from typing import Any

import httptools
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from gateway.errors import HEAD_TOO_LARGE, INVALID, SLOW_HEAD, WRONG_METHOD, RequestError

# Bounds of a request's head, and of trailers: lines, and bytes of names, values and path.
MAX_HEADERS = 128
MAX_HEAD_BYTES = 64 << 10
# A head must be complete within this time after its first byte.
HEAD_SECONDS = 15.0
# How long a client's further bytes are discarded after an early answer. Closing at once would reset the
# connection, and the client might lose the answer.
_LINGER_SECONDS = 10.0

# Headers that are removed from a request with an upgrade.
_UPGRADE = (b"upgrade", b"http2-settings")


class _At(Enum):
    """The part of a request that a connection is in."""

    BETWEEN = auto()
    HEAD = auto()
    BODY = auto()


class HttpProtocol(HttpToolsProtocol):
    """uvicorn's protocol on httptools, with checks of its own.

    - It sets TCP_NODELAY, so that small writes are sent at once. asyncio sets it only for sockets with an
      explicit protocol number, which sockets accepted by `socket.create_server` lack.
    - It ignores `Upgrade` headers, as HTTP allows: httptools would take what follows for another protocol
      and drop the request's body. Java's client asks for h2c with every first request.
    - It bounds heads in lines, bytes and time. Its refusals have OpenAI's error body, too.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._at = _At.BETWEEN
        self._moved = False
        # Bytes since the last progress of a request: of its head, or of a body's framing.
        self._overhead = 0
        self._lines = 0
        self._refusal: RequestError | None = None
        self._deaf = False
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Set TCP_NODELAY, and close the connection later if no request comes."""
        super().connection_made(transport)
        connection = transport.get_extra_info("socket")
        if connection is not None:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._await_request()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the timers."""
        self._set_timer(None)
        self._unset_keepalive_if_required()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse new bytes, and bound those that are not a body."""
        if self._deaf:
            return
        self._unset_keepalive_if_required()
        self._moved = False
        try:
            self._feed(memoryview(data))
            if not self._moved:
                self._count(len(data))
        except (httptools.HttpParserError, RequestError) as error:
            given = error if isinstance(error, RequestError) else self._refusal
            self._refuse(given or RequestError(INVALID, "this is not a request of HTTP/1.1"))
            return
        if self._at is _At.HEAD and self._timer is None:
            self._set_timer(HEAD_SECONDS, self._head_is_slow)

    def _feed(self, data: memoryview) -> None:
        while True:
            try:
                self.parser.feed_data(data)
                return
            except httptools.HttpParserUpgrade as pause:
                data = data[pause.args[0] :]
            head = self._head_without_upgrade()
            self.parser = httptools.HttpRequestParser(self)
            self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
            self.parser.feed_data(head)

    def _head_without_upgrade(self) -> bytes:
        method, version = self.parser.get_method(), self.parser.get_http_version()
        if method == b"CONNECT":
            raise RequestError(WRONG_METHOD, "this is no proxy")
        lines = [b"%b %b HTTP/%b" % (method, self.url, version.encode())]
        lines += [b"%b: %b" % (name, value) for name, value in self.headers if name not in _UPGRADE]
        return b"\r\n".join([*lines, b"", b""])

    # Called by httptools.

    def on_message_begin(self) -> None:
        """A request begins."""
        super().on_message_begin()
        self._at, self._moved = _At.HEAD, True
        self._overhead = self._lines = 0

    def on_url(self, url: bytes) -> None:
        """Part of the path."""
        super().on_url(url)
        self._count(len(url))

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header, or a trailer, which is ignored."""
        self._lines += 1
        if self._lines > MAX_HEADERS:
            self._stop(f"the request has more than {MAX_HEADERS} headers")
        self._count(len(name) + len(value))
        if self._at is _At.HEAD:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """The head is complete: the request starts, or is parsed again without its `Upgrade`."""
        if self.parser.should_upgrade():
            return
        self._at, self._moved = _At.BODY, True
        self._overhead = 0
        self._set_timer(None)
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Part of the body."""
        self._moved = True
        self._overhead = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """The request is complete, possibly after it was answered."""
        if self.parser.should_upgrade():
            return
        self._at = _At.BETWEEN
        super().on_message_complete()
        if self.cycle.response_complete and not self.pipeline:
            self._set_timer(None)
            self._await_request()

    # Called by the application's response.

    def on_response_complete(self) -> None:
        """Wait for the next request; the rest of this one's body has a time limit."""
        super().on_response_complete()
        if self._at is _At.BODY and self.cycle.response_complete and not self.transport.is_closing():
            self._set_timer(_LINGER_SECONDS, self.transport.close)

    def send_400_response(self, msg: str) -> None:
        """Refuse a request that is no valid HTTP."""
        self._refuse(RequestError(INVALID, msg))

    def shutdown(self) -> None:
        """Close after the current response."""
        if self._deaf:
            self.transport.close()
        super().shutdown()

    def _count(self, size: int) -> None:
        self._overhead += size
        if self._overhead > MAX_HEAD_BYTES:
            self._stop(f"the request's head is larger than {MAX_HEAD_BYTES} bytes")

    def _stop(self, why: str) -> None:
        # httptools replaces an exception of a callback by its own.
        self._refusal = RequestError(HEAD_TOO_LARGE, why)
        raise self._refusal

    def _head_is_slow(self) -> None:
        self._timer = None
        if self._answering:
            # Nothing more is read while pipelined requests wait.
            self._set_timer(HEAD_SECONDS, self._head_is_slow)
        else:
            self._refuse(RequestError(SLOW_HEAD, f"the head has not come within {HEAD_SECONDS:g} seconds"))

    @property
    def _answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _refuse(self, error: RequestError) -> None:
        """Send an error and close. In the middle of another response only close."""
        if self.transport.is_closing():
            return
        if self._answering and (self.pipeline or self.cycle.response_started):
            self.transport.close()
            return
        body = json.dumps(error.body()).encode()
        head = (
            b"%bcontent-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n"
            % (STATUS_LINE[error.kind.status], len(body))
        )  # fmt: skip
        self.transport.write(head + body)
        if self._answering:
            self.cycle.disconnected = True
            # It would ask for the body after the last byte is written.
            self.cycle.waiting_for_100_continue = False
            self.cycle.message_event.set()
        self._deaf = True
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self._set_timer(_LINGER_SECONDS, self.transport.close)

    def _await_request(self) -> None:
        self._unset_keepalive_if_required()
        self.timeout_keep_alive_task = self.loop.call_later(
            self.timeout_keep_alive, self.timeout_keep_alive_handler
        )

    def _set_timer(self, seconds: float | None, then: Any = None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None if seconds is None else self.loop.call_later(seconds, then)
