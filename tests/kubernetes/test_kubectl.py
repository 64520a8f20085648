"""kubectl and the gateway's client see the same objects."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from kubernetes.client.exceptions import ApiException

from gateway.kubernetes.cluster import Cluster
from gateway.kubernetes.deletion_cost import ANNOTATION
from gateway.kubernetes.failures import why
from gateway.kubernetes.slices import SELECTOR, endpoints_of
from tests.kubernetes.api_server import ApiServer
from tests.kubernetes.controllers import NAMESPACE, Controllers
from tests.tools import kubectl

Run = Callable[..., str]


@pytest.fixture
def server() -> Iterator[ApiServer]:
    with ApiServer() as made:
        yield made


@pytest.fixture
def kubeconfig(server: ApiServer, tmp_path: Path) -> Path:
    return server.kubeconfig(tmp_path / "config", NAMESPACE)


@pytest.fixture
def run(kubeconfig: Path, tmp_path: Path) -> Run:
    def run(*flags: str, stdin: str = "") -> str:
        environment = {**os.environ, "HOME": str(tmp_path), "KUBECONFIG": str(kubeconfig)}
        command = [str(kubectl()), *flags]
        done = subprocess.run(
            command, input=stdin, env=environment, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


def test_kubectl_reads_what_a_gateway_writes(server: ApiServer, kubeconfig: Path, run: Run) -> None:
    name = Controllers(server).add("verifier", "10.0.0.1:9000", pool="big")
    cluster = Cluster(kubeconfig)
    cluster.annotate_pod(name, {ANNOTATION: "8"})
    pod = json.loads(run("get", "pod", name, "-o", "json"))
    assert pod["metadata"]["annotations"] == {ANNOTATION: "8"}
    with pytest.raises(ApiException) as error:
        cluster.annotate_pod("nobody", {ANNOTATION: "8"})
    assert why(error.value) == '404 pods "nobody" not found'
    assert run("get", "po", "-l", SELECTOR, "-o", "name") == f"pod/{name}\n"
    assert run("get", "endpointslices", "-o", "jsonpath={.items[*].endpoints[*].addresses[0]}") == "10.0.0.1"
    run("wait", "--for=jsonpath={.metadata.labels.paceline\\.dev/pool}=big", f"pod/{name}", "--timeout=20s")


def test_a_gateway_finds_what_kubectl_made(server: ApiServer, kubeconfig: Path, run: Run) -> None:
    Controllers(server)
    made = {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {"name": "s", "labels": {"app.kubernetes.io/component": "verifier"}},
        "addressType": "IPv4",
        "ports": [{"name": "grpc", "port": 9000}],
        "endpoints": [{"addresses": ["10.0.0.1"], "conditions": {"ready": True}}],
    }
    run("apply", "--validate=false", "-f", "-", stdin=json.dumps(made))
    cluster = Cluster(kubeconfig)
    slices, version = cluster.endpoint_slices(SELECTOR)
    assert [pod.address for pod in endpoints_of(slices, "m").verifiers] == ["10.0.0.1:9000"]
    made["endpoints"] = [{"addresses": ["10.0.0.2"], "conditions": {"ready": False, "terminating": True}}]
    run("apply", "--validate=false", "-f", "-", stdin=json.dumps(made))
    run("delete", "endpointslice", "s")
    told = list(cluster.endpoint_slice_events(SELECTOR, version, 1))
    assert [event["type"] for event in told] == ["MODIFIED", "DELETED"]
    (pod,) = endpoints_of([told[0]["object"]], "m").verifiers
    assert (pod.address, pod.going) == ("10.0.0.2:9000", True)
