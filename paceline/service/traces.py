"""Set up OpenTelemetry by a service's settings: where spans go, and how a trace crosses processes."""

from __future__ import annotations

import atexit
import threading
from typing import TYPE_CHECKING, Any

from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

from paceline import __version__
from paceline.service.settings import SettingsError

if TYPE_CHECKING:
    from opentelemetry.propagators.textmap import TextMapPropagator

# Seconds that an ending process waits for a collector to take the last spans.
_LAST_SPANS_SECONDS = 2.0


def propagator() -> TextMapPropagator:
    """The propagator of traces between processes: W3C's, or what OTEL_PROPAGATORS names.

    Raises `SettingsError` for one that is not installed.
    """
    try:
        # The import itself looks up the propagators.
        from opentelemetry import propagate
    except ValueError as error:
        raise SettingsError(
            f"OTEL_PROPAGATORS: {error}; unset it for W3C's tracecontext and baggage, or install its package"
        ) from error
    return propagate.get_global_textmap()


def export(service: str, endpoint: str, *, use_http_proxy: bool) -> None:
    """Send this process's spans to a collector from now on. Raises `SettingsError`. Call once."""
    # The values are passed on to gRPC as they are.
    options: Any = (("grpc.enable_http_proxy", int(use_http_proxy)),)
    try:
        exporter = OTLPSpanExporter(
            endpoint=endpoint, insecure=not endpoint.startswith("https://"), channel_options=options
        )
        provider = TracerProvider(
            resource=Resource.create({"service.name": f"paceline-{service}", "service.version": __version__}),
            shutdown_on_exit=False,
        )
        provider.add_span_processor(BatchSpanProcessor(exporter))
    except Exception as error:
        # What the variables OTEL_* say is checked there, each in its own way.
        raise SettingsError(
            f"--otlp-endpoint: cannot send traces: {error}; check the variables OTEL_*"
        ) from error
    trace.set_tracer_provider(provider)
    _end_in_time(provider, exporter)


def _end_in_time(provider: TracerProvider, exporter: OTLPSpanExporter) -> None:
    """Send the last spans when the process ends, in bounded time; the exporter alone tries for long."""
    ending = threading.Event()

    def give_up() -> None:
        ending.wait()
        if not ended.wait(_LAST_SPANS_SECONDS):
            exporter.shutdown()

    def end() -> None:
        ending.set()
        provider.shutdown()
        ended.set()

    ended = threading.Event()
    # Started now, because no thread can start while the interpreter ends.
    threading.Thread(target=give_up, daemon=True, name="give up the trace collector").start()
    atexit.register(end)
