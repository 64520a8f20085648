"""The port that Prometheus scrapes: its text form, or OpenMetrics, which has exemplars."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterable
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import REGISTRY, make_wsgi_app
from prometheus_client.registry import Collector

_OPEN_METRICS = "application/openmetrics-text"


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True


class _Server6(_Server):
    address_family = socket.AF_INET6


class _Handler(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing."""


def serve(host: str, port: int, registry: Collector = REGISTRY) -> None:
    """Serve the metrics of a registry, on a thread of its own. Raises `OSError`."""
    application = make_wsgi_app(registry)

    def answer(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        environ["HTTP_ACCEPT"] = _keeping_names(environ.get("HTTP_ACCEPT", ""))
        answered: Iterable[bytes] = application(environ, start_response)
        return answered

    family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    server = make_server(
        str(address[0]),
        port,
        answer,
        _Server6 if family == socket.AF_INET6 else _Server,
        handler_class=_Handler,
    )
    threading.Thread(target=server.serve_forever, daemon=True, name="metrics").start()


def _keeping_names(accept: str) -> str:
    """What to accept in the place of `accept`, so that names do not depend on it.

    In OpenMetrics, prometheus_client (0.26) writes the colons of samples' names as underscores, unless it is
    told that UTF-8 may stay as it is. Colons are valid there; Prometheus would scrape other names than it has
    of the text form.
    """
    return f"{_OPEN_METRICS}; version=1.0.0; escaping=allow-utf-8" if _OPEN_METRICS in accept else accept
