"""Where spans go, by --otlp-endpoint and by OpenTelemetry's own variables."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2

from bench.collector import Collector, Recorded, spans_of
from paceline.service import traces
from paceline.service.settings import SettingsError

# Ends one span of its own and one below a caller's that is not sampled.
SERVICE = """
import sys
from opentelemetry import trace
from paceline.service import spans, telemetry
from paceline.service.settings import ServiceSettings, SettingsError
try:
    telemetry.setup("verifier", ServiceSettings(otlp_endpoint=sys.argv[1]))
except SettingsError as error:
    sys.exit(f"cannot start: {error}")
with spans.span("own", trace.INVALID_SPAN):
    pass
unsampled = {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00"}
with spans.span("not sampled", spans.extract(unsampled)):
    pass
"""


class HttpCollector:
    """Takes OTLP over HTTP."""

    def __init__(self) -> None:
        self.requests: list[trace_service_pb2.ExportTraceServiceRequest] = []
        self.paths: list[str] = []
        self.headers: list[Mapping[str, str]] = []
        self.port = 0

    @classmethod
    @contextmanager
    def running(cls) -> Iterator[HttpCollector]:
        made = cls()

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                made.requests.append(trace_service_pb2.ExportTraceServiceRequest.FromString(body))
                made.paths.append(self.path)
                made.headers.append({name.lower(): value for name, value in self.headers.items()})
                self.send_response(200)
                self.end_headers()

            def log_message(self, format: str, *args: Any) -> None:
                pass

        with HTTPServer(("127.0.0.1", 0), Handler) as server:
            made.port = server.server_address[1]
            threading.Thread(target=server.serve_forever, daemon=True).start()
            try:
                yield made
            finally:
                server.shutdown()


def _run(endpoint: str = "", **variables: str) -> subprocess.CompletedProcess[str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
    command = [sys.executable, "-c", SERVICE, endpoint]
    return subprocess.run(
        command, env={**inherited, **variables}, capture_output=True, text=True, timeout=60, check=False
    )


def _sent(collector: Collector, endpoint: str, **variables: str) -> list[Recorded]:
    ended = _run(endpoint, **variables)
    assert ended.returncode == 0, ended.stderr
    return collector.spans


def test_spans_go_to_the_collector_that_our_setting_names() -> None:
    with Collector.running() as collector:
        (span,) = _sent(collector, collector.address)
    assert (span.name, span.service) == ("own", "paceline-verifier")


def test_spans_go_where_the_standard_variables_say() -> None:
    with Collector.running() as collector:
        (span,) = _sent(
            collector,
            "",
            OTEL_EXPORTER_OTLP_ENDPOINT=f"http://{collector.address}",
            OTEL_SERVICE_NAME="mine",
            OTEL_RESOURCE_ATTRIBUTES="deployment.environment.name=test,service.version=9",
        )
        (request,) = collector.requests
    assert (span.name, span.service) == ("own", "mine")
    resource = {each.key: each.value.string_value for each in request.resource_spans[0].resource.attributes}
    assert resource["deployment.environment.name"] == "test"
    assert resource["service.version"] == "9"


@pytest.mark.parametrize("ours", [True, False], ids=["--otlp-endpoint", "OTEL_EXPORTER_OTLP_ENDPOINT"])
def test_spans_go_over_http_with_the_headers_that_are_set(*, ours: bool) -> None:
    with HttpCollector.running() as collector:
        address = f"127.0.0.1:{collector.port}"
        ended = _run(
            address if ours else "",
            OTEL_EXPORTER_OTLP_PROTOCOL="http/protobuf",
            OTEL_EXPORTER_OTLP_HEADERS="authorization=Bearer%20secret",
            **({} if ours else {"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://{address}"}),
        )
        assert ended.returncode == 0, ended.stderr
    assert [span.name for span in spans_of(collector.requests)] == ["own"]
    assert collector.paths == ["/v1/traces"]
    assert collector.headers[0]["authorization"] == "Bearer secret"


@pytest.mark.parametrize(
    "variables",
    [
        {"OTEL_SDK_DISABLED": "true"},
        {"OTEL_TRACES_EXPORTER": "none"},
        {"OTEL_TRACES_SAMPLER": "always_off"},
        {"OTEL_TRACES_SAMPLER": "parentbased_traceidratio", "OTEL_TRACES_SAMPLER_ARG": "0"},
    ],
    ids=lambda variables: ",".join(variables),
)
def test_the_standard_variables_turn_spans_off(variables: dict[str, str]) -> None:
    with Collector.running() as collector:
        assert not _sent(collector, collector.address, **variables)


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/json"),
        ("OTEL_TRACES_EXPORTER", "zipkin"),
        ("OTEL_EXPORTER_OTLP_COMPRESSION", "foo"),
        ("OTEL_PROPAGATORS", "foo"),
    ],
)
def test_what_cannot_be_done_is_one_line(variable: str, value: str) -> None:
    ended = _run("127.0.0.1:1", **{variable: value})
    (line,) = ended.stderr.splitlines()
    assert line.startswith("cannot start: ")
    assert variable in line
    assert value in line


def test_nothing_is_sent_without_a_collector(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("OTEL_")]:
        monkeypatch.delenv(name)
    assert not traces.wanted("")
    assert traces.wanted("collector:4317")
    # OpenTelemetry takes an empty variable for one that is not set.
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "")
    assert not traces.wanted("")
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "jaeger")
    with pytest.raises(SettingsError, match="jaeger"):
        traces.wanted("collector:4317")


@pytest.mark.parametrize(
    ("endpoint", "url"),
    [
        ("collector:4318", "http://collector:4318/v1/traces"),
        ("https://collector/", "https://collector/v1/traces"),
        ("https://collector/tenant/v1/traces", "https://collector/tenant/v1/traces"),
    ],
)
def test_over_http_a_collector_is_named_by_its_base_or_by_its_whole_url(endpoint: str, url: str) -> None:
    assert traces._traces_url(endpoint) == url
