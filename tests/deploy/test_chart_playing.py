"""What `make chart-check` gives podman: the chart's workloads, whole but for what podman does not do."""

from __future__ import annotations

import base64

import pytest

from tests.deploy.rendering import Object, Rendered
from tests.images.cluster import Pod, endpoint_slice
from tests.images.playing import playable, pod_of_test, secrets
from tests.images.release import PREFIX, VALUES, WORKLOADS, values


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> Rendered:
    return Rendered.of(values((1, 2, 3), tmp_path_factory.mktemp("tiny")), VALUES)


@pytest.mark.parametrize("workload", WORKLOADS)
def test_workloads_keep_their_configuration_and_secrets(rendered: Rendered, workload: str) -> None:
    deployment, known = rendered.one("Deployment", PREFIX + workload), secrets(rendered.objects)
    *maps, played = playable(rendered.objects, deployment, "played")
    assert played["metadata"]["name"] == "played"
    pod = played["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    assert "livenessProbe" not in container
    for variable in container.get("env", ()):
        if source := variable.get("valueFrom"):
            assert source["secretKeyRef"]["key"] in known[source["secretKeyRef"]["name"]]
    names = {volume["name"] for volume in pod["volumes"]}
    assert {mount["name"] for mount in container["volumeMounts"]} <= names
    # Of another pod's volumes podman must not take one for the same.
    assert all(name.startswith("played-") for name in names)
    mounted = {volume["configMap"]["name"] for volume in pod["volumes"] if "configMap" in volume}
    assert mounted == {each["metadata"]["name"] for each in maps}


def test_secrets_that_are_mounted_are_readable(rendered: Rendered) -> None:
    redis = rendered.one("Deployment", f"{PREFIX}redis")
    *maps, _ = playable(rendered.objects, redis, "redis")
    data = {each["metadata"]["name"]: each["data"] for each in maps}
    users = data[f"mounted-{PREFIX}redis"]["users.acl"]
    assert base64.b64decode(secrets(rendered.objects)[f"{PREFIX}redis"]["users.acl"]).decode() == users
    assert users.startswith("user default off\n")
    assert "appendonly yes" in data[f"{PREFIX}redis"]["redis.conf"]


@pytest.mark.parametrize(("name", "command"), [("completion", "generate"), ("doctor", "doctor")])
def test_pods_of_tests_are_played(rendered: Rendered, name: str, command: str) -> None:
    *_, played = playable(rendered.objects, pod_of_test(rendered.objects, name), "test")
    (container,) = played["spec"]["containers"]
    assert container["command"][:2] == ["paceline", command]
    assert played["spec"]["restartPolicy"] == "Never"


def test_gateways_are_told_of_pods_that_are_ready_or_going(rendered: Rendered) -> None:
    def pod(workload: str, number: int, *, ready: bool = True, going: bool = False) -> Pod:
        template: Object = rendered.one("Deployment", PREFIX + workload)["spec"]["template"]
        return Pod(f"{workload}-{number}", f"10.0.0.{number}", template, ready, going)

    pods = [
        pod("verifier-default", 1, going=True),
        pod("verifier-default", 2, ready=False),
        pod("verifier-other", 3),
        pod("gateway", 4),
    ]
    told = endpoint_slice(rendered.one("Service", f"{PREFIX}verifier-default"), pods)
    assert told["metadata"]["labels"]["paceline.dev/pool"] == "default"
    assert told["ports"] == [{"name": "grpc", "port": 9000}]
    assert [(each["addresses"], each["conditions"]) for each in told["endpoints"]] == [
        (["10.0.0.1"], {"ready": False, "serving": True, "terminating": True}),
        (["10.0.0.2"], {"ready": False, "serving": False, "terminating": False}),
    ]
    gateways = endpoint_slice(rendered.one("Service", f"{PREFIX}gateway"), pods)
    assert gateways["ports"] == [{"name": "http", "port": 8000}, {"name": "grpc", "port": 8001}]
    assert endpoint_slice(rendered.one("Service", f"{PREFIX}redis"), pods)["endpoints"] == []
