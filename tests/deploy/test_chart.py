"""The chart's other objects: routes, discovery, the model and its cache, monitoring, `helm test`, notes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest
import yaml

from paceline import __version__
from paceline.addresses import parse_address
from tests.deploy.rendering import CHART, Object, Rendered, container, environment, helm

GATEWAY = "fleet-paceline-gateway"
VERIFIER = "fleet-paceline-verifier-default"


def volume_of(pod: Object, path: str) -> Object:
    """The volume that is mounted at a path."""
    (name,) = [each["name"] for each in container(pod)["volumeMounts"] if each["mountPath"] == path]
    (volume,) = [each for each in pod["volumes"] if each["name"] == name]
    return {key: value for key, value in volume.items() if key != "name"}


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        ({}, "paceline-gateway:0.1.0"),
        ({"tag": "main"}, "paceline-gateway:main"),
        ({"repository": "a/b", "tag": "main", "digest": f"sha256:{'0' * 64}"}, f"a/b@sha256:{'0' * 64}"),
    ],
    ids=str,
)
@pytest.mark.parametrize("registry", ["", "registry.example.com/team/"])
def test_an_image_is_named_by_tag_or_digest(image: Mapping[str, str], expected: str, registry: str) -> None:
    rendered = Rendered.of({"image": {"registry": registry}, "gateway": {"image": image}})
    assert container(rendered.pod("Deployment", GATEWAY))["image"] == registry + expected


def test_in_the_mode_static_gateways_know_the_given_addresses() -> None:
    discovery = {"mode": "static", "verifiers": ["10.0.0.1:9000", "b:9000"], "drafters": ["c:9100"]}
    told = environment(Rendered.of({"gateway": {"discovery": discovery}}).pod("Deployment", GATEWAY))
    assert told["PACELINE_GATEWAY_DISCOVERY"] == "static"
    assert told["PACELINE_GATEWAY_VERIFIERS"] == "10.0.0.1:9000,b:9000"
    assert told["PACELINE_GATEWAY_DRAFTERS"] == "c:9100"


def test_in_the_mode_dns_gateways_look_up_every_pools_service() -> None:
    rendered = Rendered.of(
        {
            "gateway": {"discovery": {"mode": "dns"}},
            "verifierPools": {"other": {"ports": {"grpc": 9001}}},
        }
    )
    told = environment(rendered.pod("Deployment", GATEWAY))
    for kind in ("verifier", "drafter"):
        for address in told[f"PACELINE_GATEWAY_{kind.upper()}S"].split(","):
            host, port = parse_address(address)
            service = rendered.one("Service", host.removesuffix(".llm.svc"))["spec"]
            assert service["clusterIP"] == "None"
            assert [each["port"] for each in service["ports"]] == [port]
    assert len(told["PACELINE_GATEWAY_VERIFIERS"].split(",")) == 2


def test_in_the_mode_kubernetes_gateways_watch_this_release_alone() -> None:
    told = environment(Rendered.of({}).pod("Deployment", GATEWAY))
    assert told["PACELINE_GATEWAY_DISCOVERY"] == "kubernetes"
    assert told["PACELINE_GATEWAY_KUBERNETES_NAMESPACE"] == "llm"
    assert told["PACELINE_GATEWAY_KUBERNETES_SELECTOR"] == "app.kubernetes.io/instance=fleet"
    assert "PACELINE_GATEWAY_VERIFIERS" not in told


@pytest.mark.parametrize(
    ("cache", "expected"),
    [
        ({}, {"emptyDir": {}}),
        ({"sizeLimit": "9Gi"}, {"emptyDir": {"sizeLimit": "9Gi"}}),
        ({"type": "hostPath", "hostPath": "/a"}, {"hostPath": {"path": "/a", "type": "DirectoryOrCreate"}}),
        (
            {"type": "persistentVolumeClaim"},
            {"persistentVolumeClaim": {"claimName": "fleet-paceline-models", "readOnly": False}},
        ),
        (
            {
                "type": "persistentVolumeClaim",
                "readOnly": True,
                "persistentVolumeClaim": {"existingClaim": "a"},
            },
            {"persistentVolumeClaim": {"claimName": "a", "readOnly": True}},
        ),
    ],
    ids=str,
)
def test_models_are_kept_where_is_said(cache: dict[str, Any], expected: Object) -> None:
    rendered = Rendered.of({"model": {"cache": cache | {"mountPath": "/models"}}})
    for name in (GATEWAY, VERIFIER):
        pod = rendered.pod("Deployment", name)
        assert volume_of(pod, "/models") == expected
        assert environment(pod)["HF_HOME"].startswith("/models/")
        assert ("HF_HUB_OFFLINE" in environment(pod)) is cache.get("readOnly", False)
    made = cache.get("type") == "persistentVolumeClaim" and "persistentVolumeClaim" not in cache
    assert ("fleet-paceline-models" in rendered.names("PersistentVolumeClaim")) is made


def test_a_gateway_may_keep_the_tokenizer_to_itself() -> None:
    values = {"model": {"cache": {"type": "hostPath"}}, "gateway": {"sharesModelCache": False}}
    rendered = Rendered.of(values)
    path = "/var/cache/paceline/models"
    assert "hostPath" in volume_of(rendered.pod("Deployment", VERIFIER), path)
    assert "emptyDir" in volume_of(rendered.pod("Deployment", GATEWAY), path)


def test_a_model_may_be_fetched_before_the_service_starts() -> None:
    rendered = Rendered.of({"model": {"source": "a/b", "fetch": True, "hubToken": {"existingSecret": "hub"}}})
    pod = rendered.pod("Deployment", VERIFIER)
    (fetch,) = pod["initContainers"]
    assert fetch["command"] == ["paceline", "model", "fetch", "a/b"]
    assert fetch["image"] == container(pod)["image"]
    assert [each["mountPath"] for each in fetch["volumeMounts"] if each["name"] == "models"]
    for each in (fetch, container(pod)):
        (token,) = [variable for variable in each["env"] if variable["name"] == "HF_TOKEN"]
        assert token["valueFrom"]["secretKeyRef"] == {"name": "hub", "key": "token"}


def test_an_ingress_leads_to_the_http_api() -> None:
    ingress = {
        "enabled": True,
        "className": "a",
        "hosts": ["a.example.com"],
        "tlsSecret": "b",
        "path": "/llm",
    }
    spec = Rendered.of({"gateway": {"ingress": ingress}}).one("Ingress", GATEWAY)["spec"]
    assert spec["ingressClassName"] == "a"
    assert spec["tls"] == [{"secretName": "b", "hosts": ["a.example.com"]}]
    (rule,) = spec["rules"]
    (path,) = rule["http"]["paths"]
    assert (rule["host"], path["path"]) == ("a.example.com", "/llm")
    assert path["backend"]["service"] == {"name": GATEWAY, "port": {"name": "http"}}


@pytest.mark.parametrize(
    ("route", "kind", "port"), [("httpRoute", "HTTPRoute", 80), ("grpcRoute", "GRPCRoute", 81)]
)
def test_routes_of_the_gateway_api_lead_to_the_apis(route: str, kind: str, port: int) -> None:
    values = {"enabled": True, "parentRefs": [{"name": "public"}], "hostnames": ["a.example.com"]}
    gateway = {route: values, "service": {"httpPort": 80, "grpcPort": 81}}
    (only,) = Rendered.of({"gateway": gateway}).all(kind)
    assert only["spec"]["parentRefs"] == [{"name": "public"}]
    (rule,) = only["spec"]["rules"]
    assert rule["backendRefs"] == [{"name": GATEWAY, "port": port}]


@pytest.mark.parametrize("kind", ["PodMonitor", "ServiceMonitor"])
def test_prometheus_finds_every_service_of_the_fleet(kind: str) -> None:
    rendered = Rendered.of({"monitoring": {"monitor": kind, "labels": {"release": "prometheus"}}})
    monitor = rendered.one(kind, "fleet-paceline")
    assert monitor["metadata"]["labels"]["release"] == "prometheus"
    (components,) = monitor["spec"]["selector"]["matchExpressions"]
    wanted = monitor["spec"]["selector"]["matchLabels"].items()
    (endpoint,) = monitor["spec"]["podMetricsEndpoints" if kind == "PodMonitor" else "endpoints"]
    for service in ("gateway", "verifier", "drafter"):
        assert service in components["values"]
        if kind == "PodMonitor":
            found = [
                pod["spec"]["containers"][0]["ports"]
                for _, pod in rendered.pods()
                if wanted <= pod["metadata"]["labels"].items()
                and pod["metadata"]["labels"]["app.kubernetes.io/component"] == service
            ]
        else:
            found = [
                each["spec"]["ports"]
                for each in rendered.all("Service")
                if wanted <= each["metadata"]["labels"].items()
                and each["metadata"]["labels"]["app.kubernetes.io/component"] == service
            ]
        assert sum(port["name"] == endpoint["port"] for ports in found for port in ports) == 1, service


def test_rules_and_dashboards_are_the_charts_files() -> None:
    rendered = Rendered.of({"monitoring": {"rules": {"enabled": True}, "dashboards": {"enabled": True}}})
    files = sorted((CHART / "rules").glob("*.yaml"))
    groups = [group for file in files for group in yaml.safe_load(file.read_text())["groups"]]
    assert rendered.one("PrometheusRule", "fleet-paceline")["spec"]["groups"] == groups
    shown = {
        name: json.loads(text)
        for each in rendered.all("ConfigMap")
        if each["metadata"]["labels"].get("grafana_dashboard") == "1"
        for name, text in each["data"].items()
    }
    assert shown == {
        file.name: json.loads(file.read_text()) for file in (CHART / "dashboards").glob("*.json")
    }


def test_the_notes_say_what_to_do_next() -> None:
    told = helm("install", "fleet", CHART, "--namespace", "llm", "--dry-run=client")
    notes = told[told.index("NOTES:") :]
    assert "helm test fleet --namespace llm" in notes
    assert "SmolLM2-135M-Instruct" in notes
    assert "no API keys are set" in notes
    safe = {
        "gateway": {"apiKeys": {"existingSecret": "keys"}},
        "tls": {"services": {"enabled": True}},
        "autoscaling": {"drafters": {"mode": "keda"}},
    }
    told = helm("install", "fleet", CHART, "--namespace", "llm", "--dry-run=client", given=safe)
    assert "Not safe yet" not in told
    assert "Numbers of pods are fixed" not in told


def test_a_rendering_with_a_given_password_is_always_the_same() -> None:
    given = {"redis": {"internal": {"password": "given"}}}
    assert Rendered.of(given).text == Rendered.of(given).text


def test_the_chart_is_of_this_version() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert chart["appVersion"] == __version__
