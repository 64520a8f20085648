"""What a process says of itself: JSON logs, a metrics port, and spans to a collector."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import urllib.request

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
from paceline.service import metrics, spans, telemetry
from paceline.service.settings import ServiceSettings, SettingsError
from opentelemetry import trace
try:
    telemetry.setup("verifier", ServiceSettings(otlp_endpoint=sys.argv[1], metrics_port=int(sys.argv[2])))
except SettingsError as error:
    sys.exit(f"cannot start: {error}")
for _ in range(2000):
    with spans.span("span", trace.INVALID_SPAN):
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


def test_a_taken_metrics_port_is_one_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as held:
        port = str(held.getsockname()[1])
        command = [sys.executable, "-c", ENDING, "", port]
        ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert ended.stderr == (
        f"cannot start: cannot listen on 127.0.0.1:{port}: Address already in use; "
        "choose another port with --metrics-port, or stop what listens there\n"
    )
