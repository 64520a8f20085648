"""A fleet where it is to run: IPv6, behind a proxy, among service links, its trace collector away."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from paceline.client import Finished, Generation, SyncGatewayClient
from tests.pods import MODEL, Pods

NOWHERE = "http://127.0.0.1:1"
# As Kubernetes injects them for Services of these names.
SERVICE_LINKS = {
    f"PACELINE_{service}_{name}": value
    for service in ("GATEWAY", "VERIFIER", "DRAFTER")
    for name, value in {
        "SERVICE_HOST": "10.0.0.1",
        "SERVICE_PORT": "8000",
        "SERVICE_PORT_HTTP": "8000",
        "PORT": "tcp://10.0.0.1:8000",
        "PORT_8000_TCP": "tcp://10.0.0.1:8000",
        "PORT_8000_TCP_PROTO": "tcp",
        "PORT_8000_TCP_PORT": "8000",
        "PORT_8000_TCP_ADDR": "10.0.0.1",
        "METRICS_PORT": "tcp://10.0.0.2:9400",
    }.items()
}
PROXIES = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), NOWHERE)


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, redis_url: str) -> Iterator[Pods]:
    folder = tmp_path_factory.mktemp("fleet")
    away = ("--otlp-endpoint", "127.0.0.1:1")
    environment = {**SERVICE_LINKS, **PROXIES, "no_proxy": ""}
    with Pods(
        folder,
        tiny_model,
        redis_url,
        host="::1",
        environment=environment,
        metrics=True,
        gateway_flags=away,
        verifier_flags=away,
        drafter_flags=away,
    ) as pods:
        yield pods.start()


def test_it_serves_with_drafts_over_http_and_grpc(fleet: Pods) -> None:
    assert fleet.http.startswith("http://[::1]:")
    asked = {"model": MODEL, "prompt": "again and again and again", "max_tokens": 24, "temperature": 0}
    answer = httpx.post(f"{fleet.http}/v1/completions", json=asked, timeout=60)
    assert answer.status_code == 200, answer.text
    with SyncGatewayClient(fleet.grpc) as client:
        wanted = Generation(text="again and again and again", max_tokens=24, temperature=0)
        events = list(client.generate(wanted, timeout_s=60))
    assert isinstance(events[-1], Finished)
    assert fleet.drafter_status().drafted_tokens > 0
    for port in fleet.metrics_ports.values():
        assert "paceline:tasks" in httpx.get(f"http://[::1]:{port}/metrics").text


def test_a_gateway_of_another_name_says_that_it_is_not_ready(fleet: Pods) -> None:
    other = fleet.add_gateway("gateway-2", "--model-name", "large")

    def status() -> str:
        try:
            answer = httpx.get(f"{other.http}/readyz")
        except httpx.TransportError:
            return ""
        assert answer.status_code == 503
        return str(answer.json()["status"])

    why = f"a verifier serves {MODEL!r} and this gateway 'large': give both the same --model-name"
    fleet.pods["gateway-2"].until(lambda: status() == why)
    asked = {"model": "large", "prompt": "again", "max_tokens": 1}
    answer = httpx.post(f"{other.http}/v1/completions", json=asked)
    assert answer.status_code == 503
    assert "no verifier of 'large' is up" in answer.json()["error"]["message"]


def test_pods_end_though_the_collector_is_away(fleet: Pods) -> None:
    # Killed where they take more than ten seconds.
    for pod in reversed(fleet.pods.values()):
        pod.stop()
    assert {name: pod.exit_code for name, pod in fleet.pods.items()} == dict.fromkeys(fleet.pods, 0)
    assert "Traceback" not in "".join(pod.log.read_text() for pod in fleet.pods.values())
