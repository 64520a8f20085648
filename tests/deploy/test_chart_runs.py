"""The rendered chart as processes: its commands, its environment, its probes, `helm test`, and draining."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from paceline.addresses import parse_address
from tests.deploy.probes import passes
from tests.deploy.rendering import Object, Rendered, container, environment
from tests.pods import Pod
from tests.redis_servers import RedisServer, free_ports
from tests.waiting import wait_until

# As podman and the kubelet find them in the images' PATH.
PROGRAMS = Path(sys.executable).parent
SERVICES = ("verifier", "drafter", "gateway")


@dataclass(frozen=True)
class Release:
    """What was rendered, and a running process for each service."""

    rendered: Rendered
    pods: Mapping[str, Pod]

    def spec(self, service: str) -> Object:
        return self.rendered.pod("Deployment", workload(service))

    def ended(self, service: str) -> bool:
        return not self.pods[service].running

    async def passes(self, service: str, probe: str) -> bool:
        """Whether a probe passes now."""
        return await passes(container(self.spec(service))[probe], "127.0.0.1")


def workload(service: str) -> str:
    return "fleet-paceline-gateway" if service == "gateway" else f"fleet-paceline-{service}-default"


@pytest.fixture
def store(tmp_path: Path) -> Iterator[str]:
    """URL of a Redis of this test's own."""
    with RedisServer("redis", tmp_path) as server:
        yield server.url


@pytest.fixture
def release(tmp_path: Path, tiny_model: Path, store: str) -> Iterator[Release]:
    ports = iter(free_ports(8))
    verifier, drafter = next(ports), next(ports)
    rendered = Rendered.of(
        {
            "listenAddress": "127.0.0.1",
            "model": {"source": str(tiny_model), "cache": {"mountPath": str(tmp_path / "models")}},
            "gateway": {
                "ports": {"http": next(ports), "grpc": next(ports), "metrics": next(ports)},
                "settings": {"drainDelaySeconds": 0.5, "graceSeconds": 20},
                "discovery": {
                    "mode": "static",
                    "verifiers": [f"127.0.0.1:{verifier}"],
                    "drafters": [f"127.0.0.1:{drafter}"],
                },
            },
            "verifier": {
                "ports": {"grpc": verifier, "metrics": next(ports)},
                "settings": {"threads": 1, "kvTokens": 4096, "device": "cpu"},
            },
            "drafter": {"ports": {"grpc": drafter, "metrics": next(ports)}},
            "redis": {"mode": "external", "external": {"url": store}},
            "tests": {"prompt": "the quick brown fox", "maxTokens": 5},
        }
    )
    pods: dict[str, Pod] = {}
    try:
        for service in SERVICES:
            spec = rendered.pod("Deployment", workload(service))
            told = {
                name: value for name, value in environment(spec).items() if not name.endswith("CACHE_DIR")
            }
            program, *arguments = container(spec)["command"]
            pods[service] = Pod(service, [str(PROGRAMS / program), *arguments], tmp_path, environment=told)
        yield Release(rendered, pods)
    finally:
        for pod in pods.values():
            if pod.running:
                pod.kill()


def helm_test(release: Release, name: str) -> subprocess.CompletedProcess[str]:
    """Run a command of `helm test` against the gateway's port that its Service leads to."""
    pod = release.rendered.one("Pod", f"fleet-paceline-test-{name}")["spec"]
    host, port = parse_address(environment(pod)["PACELINE_GATEWAY"])
    service = release.rendered.one("Service", host)["spec"]
    (target,) = [each["targetPort"] for each in service["ports"] if each["port"] == port]
    opened = container(release.spec("gateway"))["ports"]
    (reached,) = [each["containerPort"] for each in opened if each["name"] == target]
    program, *arguments = container(pod)["command"]
    return subprocess.run(
        [PROGRAMS / program, *arguments],
        env=environment(pod) | {"PACELINE_GATEWAY": f"127.0.0.1:{reached}"},
        capture_output=True,
        text=True,
        timeout=120,
    )


async def test_the_release_serves_passes_its_tests_and_drains(release: Release) -> None:
    for service in SERVICES:
        for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
            await wait_until(
                partial(release.passes, service, probe),
                f"{probe} of the {service} passes",
                seconds=240,
            )

    done = await asyncio.to_thread(helm_test, release, "completion")
    assert done.returncode == 0, done.stderr
    assert "5 tokens" in done.stderr
    done = await asyncio.to_thread(helm_test, release, "doctor")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "gateway: its settings in the environment are sound" in done.stdout

    for service in reversed(SERVICES):
        begin = time.monotonic()
        release.pods[service].terminate()
        given = release.spec(service)["terminationGracePeriodSeconds"]
        await wait_until(
            partial(release.ended, service),
            f"the {service} has drained",
            seconds=given - (time.monotonic() - begin),
        )
        assert release.pods[service].exit_code == 0
