"""What a process says of itself: JSON logs, a metrics port, and a trace that crosses processes."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import urllib.request

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from paceline.service import telemetry

SERVICE = """
import sys
from paceline.service import metrics, telemetry
from paceline.service.settings import ServiceSettings
telemetry.setup("verifier", ServiceSettings(log_format="json", metrics_port=int(sys.argv[1])))
log = telemetry.logger("part")
metrics.label(pool="gpu", model_name="")
metrics.TASKS.set(3)
log.debug("unheard")
try:
    1 / 0
except ZeroDivisionError as error:
    log.error("broken", session="s", exc_info=error)
sys.stdin.read()
"""


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> InMemorySpanExporter:
    kept = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(kept))
    monkeypatch.setattr(telemetry, "tracer", lambda: provider.get_tracer("paceline"))
    return kept


def test_a_service_logs_a_json_object_a_line_and_serves_its_metrics() -> None:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        port = held.getsockname()[1]
    command = [sys.executable, "-c", SERVICE, str(port)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        line = json.loads(process.stderr.readline())
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
            metrics = answer.read().decode()
        _, rest = process.communicate("")
    assert (line["event"], line["level"], line["service"]) == ("broken", "error", "verifier")
    assert (line["component"], line["session"]) == ("part", "s")
    assert "ZeroDivisionError" in line["exception"]
    assert rest == ""
    assert 'paceline:tasks{pool="gpu"} 3.0' in metrics
    assert 'paceline:build_info{pool="gpu",service="verifier",version=' in metrics
    assert "_created" not in metrics


ENDING = """
import sys
from paceline.service import metrics, telemetry
from paceline.service.settings import ServiceSettings, SettingsError
from opentelemetry import trace
try:
    telemetry.setup("verifier", ServiceSettings(otlp_endpoint=sys.argv[1], metrics_port=int(sys.argv[2])))
except SettingsError as error:
    sys.exit(f"cannot start: {error}")
for _ in range(2000):
    with telemetry.span("span", trace.INVALID_SPAN):
        pass
print("ends", flush=True)
"""


def test_a_process_ends_though_its_collector_takes_nothing() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        command = [sys.executable, "-c", ENDING, f"127.0.0.1:{silent.getsockname()[1]}", "0"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "ends\n"
            # Four batches of 10 s each without a bound.
            _, said = process.communicate(timeout=9)
    assert process.returncode == 0
    assert "Traceback" not in said


@pytest.mark.parametrize(
    ("variable", "value"), [("OTEL_PROPAGATORS", "foo"), ("OTEL_EXPORTER_OTLP_COMPRESSION", "foo")]
)
def test_what_opentelemetry_cannot_be_told_is_one_line(variable: str, value: str) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", ENDING, "127.0.0.1:1", "0"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, variable: value},
    )
    (line,) = ended.stderr.splitlines()
    assert line.startswith("cannot start: ")
    assert value in line
    assert "OTEL_" in line


def test_a_taken_metrics_port_is_one_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as held:
        port = str(held.getsockname()[1])
        command = [sys.executable, "-c", ENDING, "", port]
        ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert ended.stderr == (
        f"cannot start: cannot listen on 127.0.0.1:{port}: Address already in use; "
        "choose another port with --metrics-port, or stop what listens there\n"
    )


def test_a_trace_goes_on_in_the_process_that_is_called(spans: InMemorySpanExporter) -> None:
    with telemetry.span("caller", trace.INVALID_SPAN) as caller:
        metadata = telemetry.inject(caller)
        assert [name for name, _ in metadata] == ["traceparent"]
        with telemetry.span("called", telemetry.extract(dict(metadata))):
            pass
    called, calling = spans.get_finished_spans()
    assert called.context.trace_id == calling.context.trace_id
    assert called.parent is not None
    assert called.parent.span_id == calling.context.span_id


@pytest.mark.parametrize("metadata", [{}, {"traceparent": "nonsense"}, {"traceparent": "00-0-0-00"}])
def test_a_caller_without_a_trace_begins_a_new_one(
    spans: InMemorySpanExporter, metadata: dict[str, str]
) -> None:
    with telemetry.span("called", telemetry.extract(metadata)):
        pass
    (called,) = spans.get_finished_spans()
    assert called.parent is None


def test_a_span_tells_the_kind_of_error_that_left_it_and_not_its_words(spans: InMemorySpanExporter) -> None:
    # Not words that the hexadecimal ids of a span could spell.
    with pytest.raises(ValueError, match="private"), telemetry.span("failing", trace.INVALID_SPAN):
        raise ValueError("private words")
    (failed,) = spans.get_finished_spans()
    assert failed.status.status_code is trace.StatusCode.ERROR
    assert failed.status.description == "ValueError"
    assert "private" not in failed.to_json()


def test_a_span_is_never_the_current_one(spans: InMemorySpanExporter) -> None:
    with telemetry.span("open", trace.INVALID_SPAN):
        assert trace.get_current_span() is trace.INVALID_SPAN
