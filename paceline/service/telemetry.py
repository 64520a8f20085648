"""Logs, traces and metrics set up in one place."""

from __future__ import annotations

import logging
import re
import sys
from typing import Any, Protocol

import structlog

from paceline.service import metrics, traces


class TelemetrySettings(Protocol):
    """The settings that `setup` reads; every `ServiceSettings` has them."""

    @property
    def metrics_port(self) -> int: ...
    @property
    def host(self) -> str: ...
    @property
    def log_level(self) -> str: ...
    @property
    def log_format(self) -> str: ...
    @property
    def otlp_endpoint(self) -> str: ...
    @property
    def use_http_proxy(self) -> bool: ...


def setup(service: str, settings: TelemetrySettings) -> None:
    """Configure logs (to stderr), trace export and the metrics port of this process. Call once.

    Raises `SettingsError`.
    """
    _setup_logs(service, settings.log_level, settings.log_format)
    traces.propagator()
    if traces.wanted(settings.otlp_endpoint):
        traces.export(service, settings.otlp_endpoint, use_http_proxy=settings.use_http_proxy)
    if settings.metrics_port:
        metrics.serve(service, settings.host, settings.metrics_port)


def _setup_logs(service: str, level: str, form: str) -> None:
    renderer: structlog.typing.Processor
    if form == "json":
        renderer = structlog.processors.JSONRenderer()
    else:
        renderer = structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
    structlog.contextvars.bind_contextvars(service=service)
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.StackInfoRenderer(),
            structlog.processors.format_exc_info,
            printable,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr)


# Characters that a terminal may take for a command, or for the end of a line.
_CONTROL = re.compile("[\\x00-\\x1f\\x7f-\\x9f\\u2028\\u2029\\u202a-\\u202e\\u2066-\\u2069]")
_CONTROL_OF_TEXTS = re.compile("(?![\n\t])" + _CONTROL.pattern)
# Fields whose values may have several lines.
_TEXTS = frozenset({"exception", "stack"})


def _escape(found: re.Match[str]) -> str:
    return repr(found[0])[1:-1]


def printable(logger: Any, method: str, line: structlog.typing.EventDict) -> structlog.typing.EventDict:
    """A processor of structlog: control characters, which may be a client's, as their escapes."""

    for key, value in line.items():
        if isinstance(value, str):
            line[key] = (_CONTROL_OF_TEXTS if key in _TEXTS else _CONTROL).sub(_escape, value)
    return line


def logger(name: str) -> Any:
    """A structured logger: `log.info("event", key=value)`."""
    return structlog.get_logger(component=name)
