"""What a connection may send before a request is one: bounds on heads, and upgrades that are not taken."""

from __future__ import annotations

import asyncio
import json
import socket
from enum import Enum, auto
from typing import Any

import httptools
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from gateway.errors import HEAD_TOO_LARGE, INVALID, SLOW_HEAD, WRONG_METHOD, RequestError

# Of a request's head, and of trailers: lines, and bytes (names, values and the path).
MAX_HEADERS = 128
MAX_HEAD_BYTES = 64 << 10
# A head that has begun must be whole within this time.
HEAD_SECONDS = 15.0
# How long what a client still sends is thrown away, once it has its answer. To close at once would reset the
# connection, and the client might lose the answer.
_LINGER_SECONDS = 10.0

# What an upgrade that is not taken leaves out of its request.
_UPGRADE = (b"upgrade", b"http2-settings")


class _At(Enum):
    """Where in its requests a connection is."""

    BETWEEN = auto()
    HEAD = auto()
    BODY = auto()


class HttpProtocol(HttpToolsProtocol):
    """uvicorn's protocol on httptools with a door of its own.

    - Small writes leave at once (asyncio sees to that only for sockets that name their protocol, and those
      that `socket.create_server` accepts do not).
    - An `Upgrade` header is passed over, as HTTP allows: httptools takes what follows for another protocol's
      and drops a body that is HTTP. Java's client asks for h2c with every first request.
    - Heads are bounded in lines, bytes and time. What is refused here has OpenAI's error body, too.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """As uvicorn calls it."""
        super().__init__(*args, **kwargs)
        self._at = _At.BETWEEN
        self._moved = False
        # Bytes since a request last went on: its head, and what of a body is not the body.
        self._overhead = 0
        self._lines = 0
        self._refusal: RequestError | None = None
        self._deaf = False
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Let nothing wait for an acknowledgement; close what says nothing."""
        super().connection_made(transport)
        connection = transport.get_extra_info("socket")
        if connection is not None:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._await_request()

    def connection_lost(self, exc: Exception | None) -> None:
        """End the timers."""
        self._set_timer(None)
        self._unset_keepalive_if_required()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse what came, and bound what of it is no body."""
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

    # What httptools calls.

    def on_message_begin(self) -> None:
        """A request's first byte."""
        super().on_message_begin()
        self._at, self._moved = _At.HEAD, True
        self._overhead = self._lines = 0

    def on_url(self, url: bytes) -> None:
        """Some of the path."""
        super().on_url(url)
        self._count(len(url))

    def on_header(self, name: bytes, value: bytes) -> None:
        """A line of the head, or a trailer, of which nothing is used."""
        self._lines += 1
        if self._lines > MAX_HEADERS:
            self._stop(f"the request has more than {MAX_HEADERS} headers")
        self._count(len(name) + len(value))
        if self._at is _At.HEAD:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """The head is whole: the request begins, unless it is read once more without its `Upgrade`."""
        if self.parser.should_upgrade():
            return
        self._at, self._moved = _At.BODY, True
        self._overhead = 0
        self._set_timer(None)
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Some of the body."""
        self._moved = True
        self._overhead = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """The request's last byte, which may come when it has been answered."""
        if self.parser.should_upgrade():
            return
        self._at = _At.BETWEEN
        super().on_message_complete()
        if self.cycle.response_complete and not self.pipeline:
            self._set_timer(None)
            self._await_request()

    # What the application's answer calls.

    def on_response_complete(self) -> None:
        """The next request may come; what is left of this one's body has a while."""
        super().on_response_complete()
        if self._at is _At.BODY and self.cycle.response_complete and not self.transport.is_closing():
            self._set_timer(_LINGER_SECONDS, self.transport.close)

    def send_400_response(self, msg: str) -> None:
        """Refuse."""
        self._refuse(RequestError(INVALID, msg))

    def shutdown(self) -> None:
        """Close once what is being answered has been."""
        if self._deaf:
            self.transport.close()
        super().shutdown()

    def _count(self, size: int) -> None:
        self._overhead += size
        if self._overhead > MAX_HEAD_BYTES:
            self._stop(f"the request's head is larger than {MAX_HEAD_BYTES} bytes")

    def _stop(self, why: str) -> None:
        # httptools replaces what a callback raises by an error of its own.
        self._refusal = RequestError(HEAD_TOO_LARGE, why)
        raise self._refusal

    def _head_is_slow(self) -> None:
        self._timer = None
        if self._answering:
            # Nothing more is read while requests wait for one another.
            self._set_timer(HEAD_SECONDS, self._head_is_slow)
        else:
            self._refuse(RequestError(SLOW_HEAD, f"the head has not come within {HEAD_SECONDS:g} seconds"))

    @property
    def _answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _refuse(self, error: RequestError) -> None:
        """Answer, and close. Amid another request's answer nothing is written: it ends there."""
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
            # It would invite the body, behind the last byte that is written.
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
