"""Set up OpenTelemetry: where this process's spans go, by our settings and the standard variables OTEL_*."""

from __future__ import annotations

import atexit
import os
import threading
from typing import TYPE_CHECKING, Any

from opentelemetry import trace
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter

from paceline import __version__
from paceline.service.settings import SettingsError

if TYPE_CHECKING:
    from opentelemetry.propagators.textmap import TextMapPropagator

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
_GRPC, _HTTP = "grpc", "http/protobuf"
# Where collectors take spans over HTTP.
_PATH = "/v1/traces"
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


def wanted(endpoint: str) -> bool:
    """Whether spans are to be sent: `endpoint` or OTEL_* name a collector, and OTEL_* do not turn it off.

    Raises `SettingsError` for another exporter than OTLP's.
    """
    exporter = _variable("OTEL_TRACES_EXPORTER") or "otlp"
    if exporter not in ("otlp", "none"):
        raise SettingsError(f"OTEL_TRACES_EXPORTER: {exporter!r} is not served; give otlp or none")
    if exporter == "none" or _variable("OTEL_SDK_DISABLED").lower() == "true":
        return False
    return bool(endpoint or _variable(*_ENDPOINTS))


def export(service: str, endpoint: str, *, use_http_proxy: bool) -> None:
    """Send this process's spans to a collector from now on. Call once. Raises `SettingsError`.

    `endpoint`: a collector's host:port or URL; empty takes the one that OTEL_* name. Everything else is as
    OTEL_* say: the protocol (gRPC without), headers, certificates, sampling, batches, the resource.
    """
    try:
        exporter = _exporter(endpoint, use_http_proxy=use_http_proxy)
        provider = TracerProvider(resource=_resource(service), shutdown_on_exit=False)
        provider.add_span_processor(BatchSpanProcessor(exporter))
    except SettingsError:
        raise
    except Exception as error:
        # What the variables OTEL_* say is checked there, each in its own way.
        raise SettingsError(
            f"--otlp-endpoint: cannot send traces: {error}; check the variables OTEL_*"
        ) from error
    trace.set_tracer_provider(provider)
    _end_in_time(provider, exporter)


def _exporter(endpoint: str, *, use_http_proxy: bool) -> SpanExporter:
    protocol = _variable(*_PROTOCOLS) or _GRPC
    if protocol == _GRPC:
        return _grpc_exporter(endpoint, use_http_proxy=use_http_proxy)
    if protocol == _HTTP:
        return _http_exporter(endpoint, use_http_proxy=use_http_proxy)
    raise SettingsError(f"{_PROTOCOLS[1]}: {protocol!r} is not served; give {_GRPC} or {_HTTP}")


def _grpc_exporter(endpoint: str, *, use_http_proxy: bool) -> SpanExporter:
    from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter

    # The values are passed on to gRPC as they are.
    options: Any = (("grpc.enable_http_proxy", int(use_http_proxy)),)
    if not endpoint:
        return OTLPSpanExporter(channel_options=options)
    return OTLPSpanExporter(
        endpoint=endpoint, insecure=not endpoint.startswith("https://"), channel_options=options
    )


def _http_exporter(endpoint: str, *, use_http_proxy: bool) -> SpanExporter:
    import requests
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    session = requests.Session()
    session.trust_env = use_http_proxy
    return OTLPSpanExporter(endpoint=_traces_url(endpoint) if endpoint else None, session=session)


def _traces_url(endpoint: str) -> str:
    """The URL that takes spans at a collector: its own path if it has one."""
    url = (endpoint if "://" in endpoint else f"http://{endpoint}").rstrip("/")
    return url if url.endswith(_PATH) else url + _PATH


def _resource(service: str) -> Resource:
    """What OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES say, over our own names."""
    own = Resource({"service.name": f"paceline-{service}", "service.version": __version__})
    return Resource.create(own.merge(OTELResourceDetector().detect()).attributes)


def _variable(*names: str) -> str:
    """The first of these variables that is set; empty counts as unset, as OpenTelemetry has it."""
    return next((value for name in names if (value := os.environ.get(name, "").strip())), "")


def _end_in_time(provider: TracerProvider, exporter: SpanExporter) -> None:
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
