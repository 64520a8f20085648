"""Middleware of every HTTP request: its log line, id, span and connection's end, its path without a slash."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway.http.request_span import RequestSpan
from paceline.service import spans, telemetry

log = telemetry.logger(__name__)

_REQUEST_ID = "x-request-id"
_LONGEST_ID = 128
# OpenAI's: milliseconds from the request's head to the response's.
_PROCESSING = "openai-processing-ms"
# Probes come every few seconds. Changes of their answers are logged instead (`readiness.py`).
_PROBES = frozenset({"/health", "/healthz", "/readyz"})
_TOLD = frozenset({200, 503})


class AccessLog:
    """ASGI middleware: logs a request when its response begins, returns its id and trace, ends its span.

    While the gateway drains, it ends the connection behind each response: the client's next request then goes
    where a load balancer sends it, and not to a gateway that closes meanwhile.

    Not Starlette's kind of middleware: that passes each part of a streamed response through a queue to
    another task, which was a sixth of the gateway's cost per event.
    """

    def __init__(self, app: ASGIApp, draining: Callable[[], bool] = lambda: False) -> None:
        self._app = app
        self._draining = draining

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass everything on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = Headers(scope=scope).get(_REQUEST_ID, "")[:_LONGEST_ID] or uuid.uuid4().hex
        started = time.monotonic()
        span, status = RequestSpan(scope), 500

        async def observed(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                told = MutableHeaders(scope=message)
                told[_REQUEST_ID] = request_id
                told[_PROCESSING] = str(round(1000 * (time.monotonic() - started)))
                if self._draining():
                    told["connection"] = "close"
                if span.response:
                    told[spans.RESPONSE_HEADER] = span.response
                quiet = scope["path"].rstrip("/") in _PROBES and status in _TOLD
                (log.debug if quiet else log.info)(
                    "request",
                    method=scope["method"],
                    path=scope["path"],
                    status=status,
                    seconds=round(time.monotonic() - started, 3),
                    request_id=request_id,
                )
            await send(message)

        try:
            await self._app(scope, receive, observed)
        finally:
            span.end(status)


class Slashless:
    """ASGI middleware: a path with a trailing slash is served as the path without it.

    A redirect would lose the body, and many clients do not follow one for a POST.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass everything on."""
        if scope["type"] == "http" and len(scope["path"]) > 1 and scope["path"].endswith("/"):
            scope = {**scope, "path": scope["path"].rstrip("/") or "/"}
        await self._app(scope, receive, send)
