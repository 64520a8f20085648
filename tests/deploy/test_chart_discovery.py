"""The rendered gateway against an API server: its rights are enough, and its selector finds its own pods."""

from __future__ import annotations

import base64
from contextlib import aclosing
from pathlib import Path

import pytest

from gateway.config import GatewaySettings
from gateway.discovery.factory import cluster_of, discovery_of
from paceline.service.settings import load_settings
from tests.deploy.rendering import Rendered, template
from tests.deploy.test_chart_settings import told
from tests.kubernetes.api_server import ApiServer
from tests.kubernetes.controllers import Controllers

ADDRESSES = {
    "fleet-paceline-verifier-default": "10.0.0.1:9000",
    "fleet-paceline-verifier-large": "10.0.0.2:9001",
    "fleet-paceline-drafter-default": "10.0.0.3:9100",
}


async def test_a_gateway_finds_the_pods_of_its_release_and_may_annotate_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rendered = Rendered.of({"model": {"name": "A model"}, "verifierPools": {"large": {}}})
    (role,) = rendered.all("Role")
    with ApiServer() as server:
        server.rules["gateway"] = role["rules"]
        controllers = Controllers(server, "llm")
        for name, address in ADDRESSES.items():
            # Kubernetes copies a Service's labels to its slices.
            labels = dict(rendered.one("Service", name)["metadata"]["labels"])
            component = labels.pop("app.kubernetes.io/component")
            pool = labels.pop("paceline.dev/pool")
            controllers.add(component, address, pool=pool, **labels)
        other = {"app.kubernetes.io/instance": "other"}
        controllers.add("verifier", "10.0.0.9:9009", **other)

        for name, value in told(rendered.pod("Deployment", "fleet-paceline-gateway")).items():
            monkeypatch.setenv(name, value)
        kubeconfig = server.kubeconfig(tmp_path / "config", "elsewhere", token="gateway")
        settings = load_settings(GatewaySettings, kubeconfig=kubeconfig)
        cluster = cluster_of(settings)
        assert cluster is not None
        async with aclosing(discovery_of(settings, cluster).endpoints()) as endpoints:
            found = await anext(endpoints)
        pods = (*found.verifiers, *found.drafters)
        assert {pod.address: pod.pool for pod in pods} == {
            "10.0.0.1:9000": "default",
            "10.0.0.2:9001": "large",
            "10.0.0.3:9100": "default",
        }
        cluster.annotate_pod(found.drafters[0].pod, {"paceline.dev/seen": "yes"})
        assert controllers.annotations("drafter", "10.0.0.3:9100") == {"paceline.dev/seen": "yes"}


def test_an_upgrade_keeps_the_password_that_was_drawn(tmp_path: Path) -> None:
    first = Rendered.of({}).one("Secret", "fleet-paceline-redis")
    with ApiServer() as server:
        # As the API server keeps it: encoded.
        kept = {key: base64.b64encode(text.encode()).decode() for key, text in first["stringData"].items()}
        # By these Helm knows a release's objects.
        owned = {"meta.helm.sh/release-name": "fleet", "meta.helm.sh/release-namespace": "llm"}
        metadata = first["metadata"] | {"annotations": owned}
        core = Controllers(server, "llm").core
        core.create_namespaced_secret("llm", {"metadata": metadata, "data": kept})
        kubeconfig = server.kubeconfig(tmp_path / "config", "llm")
        flags = ("--dry-run=server", "--disable-openapi-validation", "--kubeconfig", str(kubeconfig))
        again = Rendered(template({}, flags=flags)).one("Secret", "fleet-paceline-redis")
    assert again["stringData"] == first["stringData"]
