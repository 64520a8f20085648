"""The HTTP server, and its stop, which lets running responses end."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn
from starlette.types import ASGIApp

from gateway.http.protocol import HttpProtocol
from paceline.net.rpc import CLEAN_UP_SECONDS
from paceline.net.tls import Identity


class HttpServer(uvicorn.Server):
    """uvicorn's server without signal handlers. When it has stopped, requests that it cut have ended too."""

    def __init__(
        self, app: ASGIApp, identity: Identity | None, *, keep_alive_seconds: float, grace_seconds: float
    ) -> None:
        """`identity`: for TLS to clients; None serves plaintext."""
        config = uvicorn.Config(
            app,
            http=HttpProtocol,
            ws="none",
            log_config=None,
            access_log=False,
            lifespan="off",
            timeout_keep_alive=keep_alive_seconds,  # type: ignore[arg-type]
            timeout_graceful_shutdown=max(1, int(grace_seconds)),
        )
        if identity is not None:
            config.load()
            config.ssl = identity.https_context()
        super().__init__(config)
        logging.getLogger("uvicorn.error").addFilter(_is_worth_logging)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Let running requests end within the grace period."""
        await super().shutdown(sockets)
        if self.server_state.tasks:
            await asyncio.wait(self.server_state.tasks, timeout=CLEAN_UP_SECONDS)

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Install no signal handlers: `run_service` has its own."""
        yield


def _is_worth_logging(record: logging.LogRecord) -> bool:
    """Drops the traceback of each request that was cut at the grace's end; uvicorn logs their number."""
    return not (record.exc_info and isinstance(record.exc_info[1], asyncio.CancelledError))
