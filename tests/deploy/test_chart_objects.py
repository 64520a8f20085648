"""What the chart renders is what Kubernetes and the operators take, field by field."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
from cloudcoil.models.cert_manager import v1 as cert_manager
from cloudcoil.models.keda import v1alpha1 as keda
from cloudcoil.models.prometheus_operator import v1 as prometheus_operator
from pydantic import BaseModel

from tests.deploy.rendering import CHART, EVERYTHING, VALUES, Object, Rendered, helm

# The oldest that the chart takes, one between, the newest that there are schemas of.
KUBERNETES = ("1.30", "1.33", "1.37")
FILES = [CHART / "values.yaml", *VALUES, EVERYTHING]
by_file = pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)

MODELS: Mapping[str, type[BaseModel]] = {
    "ScaledObject": keda.ScaledObject,
    "TriggerAuthentication": keda.TriggerAuthentication,
    "PodMonitor": prometheus_operator.PodMonitor,
    "ServiceMonitor": prometheus_operator.ServiceMonitor,
    "PrometheusRule": prometheus_operator.PrometheusRule,
    "Certificate": cert_manager.Certificate,
    "Issuer": cert_manager.Issuer,
}
# Nobody publishes models of these for Python: what the chart uses of them, closed.
SCHEMAS = {
    "HTTPRoute": "routes.json",
    "GRPCRoute": "routes.json",
    "LeaderWorkerSet": "leader-worker-set.json",
}


@cache
def rendered(file: Path) -> Rendered:
    return Rendered.of(None, file)


def core_objects(file: Path) -> Iterator[Object]:
    """Objects that Kubernetes itself knows, and pods inside of those that it does not."""
    for each in rendered(file).objects:
        if each["kind"] == "LeaderWorkerSet":
            for name, pod in rendered(file).pods():
                if name.startswith(f"{each['metadata']['name']}/"):
                    yield {
                        "apiVersion": "v1",
                        "kind": "PodTemplate",
                        "metadata": {"name": "x"},
                        "template": pod,
                    }
        elif each["kind"] not in MODELS and each["kind"] not in SCHEMAS:
            yield each


@by_file
def test_helm_finds_nothing_to_say(file: Path) -> None:
    assert "0 chart(s) failed" in helm("lint", "--strict", CHART, "--values", file)


@by_file
@pytest.mark.parametrize("version", KUBERNETES)
def test_every_object_is_valid_for_every_kubernetes(version: str, file: Path) -> None:
    for each in core_objects(file):
        # An unknown kind raises, too.
        kubernetes_validate.validate(each, version, strict=True)


@by_file
def test_every_object_of_an_operator_fits_its_model(file: Path) -> None:
    for each in rendered(file).objects:
        if model := MODELS.get(each["kind"]):
            model.model_validate(each, extra="forbid")
        elif schema := SCHEMAS.get(each["kind"]):
            text = (Path(__file__).parent / "crds" / schema).read_text()
            jsonschema.validate(each, json.loads(text), cls=jsonschema.Draft7Validator)


def test_all_kinds_are_rendered_by_something() -> None:
    kinds = {each["kind"] for file in FILES for each in rendered(file).objects}
    assert kinds >= {*MODELS, *SCHEMAS}


@by_file
def test_no_two_objects_have_one_name(file: Path) -> None:
    names = [(each["apiVersion"], each["kind"], each["metadata"]["name"]) for each in rendered(file).objects]
    assert len(names) == len(set(names))


def selected(selector: Mapping[str, str], labels: Mapping[str, str]) -> bool:
    return selector.items() <= labels.items()


@by_file
def test_every_selector_finds_a_pod(file: Path) -> None:
    """Services, budgets, policies and workloads select by labels: none of them is for nobody."""
    pods = [pod["metadata"]["labels"] for _, pod in rendered(file).pods()]

    def selectors(node: Any) -> Iterator[Mapping[str, str]]:
        if isinstance(node, dict):
            for key, value in node.items():
                if key in ("selector", "podSelector") and isinstance(value, dict):
                    yield value.get("matchLabels", {} if "matchExpressions" in value else value)
                yield from selectors(value)
        elif isinstance(node, list):
            for each in node:
                yield from selectors(each)

    for each in rendered(file).objects:
        if each["kind"] in ("ServiceMonitor", "HorizontalPodAutoscaler"):
            continue
        for selector in selectors(each.get("spec", {})):
            own = not selector.keys() & {"k8s-app"}
            assert not own or any(selected(selector, labels) for labels in pods), (each["metadata"], selector)


@by_file
def test_every_target_port_is_one_of_the_pods(file: Path) -> None:
    pods = [pod for _, pod in rendered(file).pods()]
    for service in rendered(file).all("Service"):
        behind = [pod for pod in pods if selected(service["spec"]["selector"], pod["metadata"]["labels"])]
        for pod in behind:
            ports = {port["name"] for each in pod["spec"]["containers"] for port in each.get("ports", ())}
            assert {port["targetPort"] for port in service["spec"]["ports"]} <= ports


@by_file
def test_every_mounted_volume_is_there_and_every_volume_is_mounted(file: Path) -> None:
    for name, pod in rendered(file).pods():
        spec = pod["spec"]
        containers = [*spec["containers"], *spec.get("initContainers", ())]
        mounted = {mount["name"] for each in containers for mount in each.get("volumeMounts", ())}
        assert mounted == {volume["name"] for volume in spec.get("volumes", ())}, name


@by_file
def test_pods_have_no_rights_that_they_do_not_need(file: Path) -> None:
    for name, pod in rendered(file).pods():
        spec, labels = pod["spec"], pod["metadata"]["labels"]
        gateway = labels["app.kubernetes.io/component"] == "gateway"
        assert spec["automountServiceAccountToken"] is gateway, name
        assert spec["enableServiceLinks"] is False
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for each in (*spec["containers"], *spec.get("initContainers", ())):
            assert each["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }


def rights(values: Mapping[str, Any]) -> set[tuple[str, str]]:
    """What the gateways' account may do."""
    return {
        (verb, resource)
        for role in Rendered.of(values).all("Role")
        for rule in role["rules"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }


FIND_PODS = {("list", "endpointslices"), ("watch", "endpointslices")}


def test_the_gateways_account_may_do_what_its_settings_ask_for() -> None:
    assert rights({}) == FIND_PODS | {("patch", "pods")}
    assert rights({"gateway": {"settings": {"deletionCostSeconds": 0}}}) == FIND_PODS
    assert rights({"gateway": {"discovery": {"mode": "static", "verifiers": ["a:9000"]}}}) == set()
