"""Pools of verifiers and drafters: what they say otherwise, GPUs, processes, draining, scaling."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.kubernetes.slices import label_value
from tests.deploy.rendering import CHART, RefusedError, Rendered, container, environment

VERIFIER = "fleet-paceline-verifier-default"
DRAFTER = "fleet-paceline-drafter-default"
GATEWAY = "fleet-paceline-gateway"


def test_pools_stand_side_by_side_and_differ_in_what_they_say() -> None:
    rendered = Rendered.of(
        {
            "drafter": {"replicas": 3, "nodeSelector": {"disk": "fast"}, "hostNetwork": True},
            "drafterPools": {
                "default": None,
                "cpu": {},
                "spot": {"gpus": 1, "replicas": 0, "hostNetwork": False, "nodeSelector": {"gpu": "small"}},
            },
        }
    )
    assert {name for name in rendered.names("Deployment") if "drafter" in name} == {
        "fleet-paceline-drafter-cpu",
        "fleet-paceline-drafter-spot",
    }
    cpu, spot = (rendered.one("Deployment", f"fleet-paceline-drafter-{pool}") for pool in ("cpu", "spot"))
    assert (cpu["spec"]["replicas"], spot["spec"]["replicas"]) == (3, 0)
    cpu_pod, spot_pod = cpu["spec"]["template"]["spec"], spot["spec"]["template"]["spec"]
    assert cpu_pod["hostNetwork"] is True
    assert "hostNetwork" not in spot_pod
    assert cpu_pod["nodeSelector"] == {"disk": "fast"}
    assert spot_pod["nodeSelector"] == {"disk": "fast", "gpu": "small"}
    assert "nvidia.com/gpu" not in container(cpu_pod)["resources"]["limits"]
    assert container(spot_pod)["resources"]["limits"]["nvidia.com/gpu"] == 1


def test_a_pool_that_is_null_is_none() -> None:
    rendered = Rendered.of({"verifierPools": {"small": None}})
    assert "fleet-paceline-verifier-small" not in rendered.names("Deployment")
    assert "fleet-paceline-verifier-small" in Rendered.of({"verifierPools": {"small": {}}}).names(
        "Deployment"
    )


def test_pods_and_services_say_their_pool_and_model() -> None:
    name = "Model of (some) name"
    rendered = Rendered.of({"model": {"name": name}})
    for kind in ("Deployment", "Service"):
        labels = rendered.one(kind, VERIFIER)["metadata"]["labels"]
        assert labels["paceline.dev/pool"] == "default"
        assert labels["paceline.dev/model"] == label_value(name)
        assert labels["app.kubernetes.io/component"] == "verifier"
    assert rendered.one("Service", DRAFTER)["metadata"]["labels"]["paceline.dev/pool"] == "default"
    told = environment(rendered.pod("Deployment", VERIFIER))
    assert told["PACELINE_VERIFIER_POOL"] == "default"
    assert told["PACELINE_VERIFIER_MODEL_NAME"] == name


@pytest.mark.parametrize(
    ("pool", "command"),
    [
        ({}, ["paceline", "verifier"]),
        ({"gpus": 1}, ["paceline", "verifier"]),
        ({"gpus": 4}, ["torchrun", "--standalone", "--nproc-per-node=4", "-m", "verifier_svc"]),
        ({"tensorParallel": 2}, ["torchrun", "--standalone", "--nproc-per-node=2", "-m", "verifier_svc"]),
        ({"gpus": 2, "tensorParallel": 1}, ["paceline", "verifier"]),
    ],
    ids=str,
)
def test_the_gpus_of_a_pod_share_one_model(pool: dict[str, Any], command: list[str]) -> None:
    pod = Rendered.of({"verifierPools": {"default": pool}}).pod("Deployment", VERIFIER)
    assert container(pod)["command"] == command
    mounts = {mount["mountPath"] for mount in container(pod)["volumeMounts"]}
    assert ("/dev/shm" in mounts) is (command[0] == "torchrun")


def test_a_verifier_over_several_nodes_is_a_group_whose_leader_is_called() -> None:
    rendered = Rendered.of({"verifierPools": {"large": {"gpus": 8, "nodes": 2, "replicas": 3}}})
    group = rendered.one("LeaderWorkerSet", "fleet-paceline-verifier-large")["spec"]
    assert group["replicas"] == 3
    template = group["leaderWorkerTemplate"]
    assert template["size"] == 2
    leader, follower = template["leaderTemplate"], template["workerTemplate"]
    for pod in (leader["spec"], follower["spec"]):
        command = container(pod)["command"]
        assert "--nnodes=$(LWS_GROUP_SIZE)" in command
        assert "--master-addr=$(LWS_LEADER_ADDRESS)" in command
        assert "--nproc-per-node=8" in command
        assert "--standalone" not in command
        assert container(pod)["resources"]["limits"]["nvidia.com/gpu"] == 8
    # Followers have no port and are asked nothing.
    assert "startupProbe" in container(leader["spec"])
    assert not container(follower["spec"]).keys() & {
        "startupProbe",
        "livenessProbe",
        "readinessProbe",
        "ports",
    }
    selector = rendered.one("Service", "fleet-paceline-verifier-large")["spec"]["selector"]
    assert selector.items() <= leader["metadata"]["labels"].items()
    assert not selector.items() <= follower["metadata"]["labels"].items()


def test_torchrun_is_not_asked_for_more_grace_than_it_gives() -> None:
    pool = {"gpus": 2, "settings": {"graceSeconds": 26}}
    with pytest.raises(RefusedError, match="torchrun kills what is left after 30 seconds"):
        Rendered.of({"verifierPools": {"default": pool}})
    Rendered.of({"verifierPools": {"default": pool | {"gpus": 1}}})


@pytest.mark.parametrize(
    ("service", "name", "seconds"), [("gateway", GATEWAY, 3 + 7 + 40), ("verifier", VERIFIER, 3 + 20)]
)
def test_a_pod_has_the_time_that_its_service_takes_to_drain(service: str, name: str, seconds: float) -> None:
    settings = {"graceSeconds": 40, "drainDelaySeconds": 7} if service == "gateway" else {"graceSeconds": 20}
    pod = Rendered.of({service: {"settings": settings, "preStopSeconds": 3}}).pod("Deployment", name)
    # And up to 5 s for its last words.
    assert pod["terminationGracePeriodSeconds"] > seconds + 5
    assert container(pod)["lifecycle"]["preStop"] == {"sleep": {"seconds": 3}}
    assert environment(pod)[f"PACELINE_{service.upper()}_GRACE_SECONDS"] == str(settings["graceSeconds"])


def test_a_start_may_take_as_long_as_is_said() -> None:
    values = {"startupSeconds": 7200, "probes": {"periodSeconds": 7}}
    probe = container(Rendered.of({"verifier": values}).pod("Deployment", VERIFIER))["startupProbe"]
    assert probe["periodSeconds"] * probe["failureThreshold"] >= 7200
    assert probe["grpc"] == {"port": 9000}


def test_with_mutual_tls_probes_ask_as_the_service_itself_may() -> None:
    pod = container(Rendered.of({"tls": {"services": {"enabled": True}}}).pod("Deployment", VERIFIER))
    assert pod["startupProbe"]["tcpSocket"] == pod["readinessProbe"]["tcpSocket"] == {"port": 9000}
    assert pod["livenessProbe"]["exec"] == {"command": ["paceline", "health", "verifier"]}


def test_an_upgrade_takes_no_pod_away_before_another_is_ready() -> None:
    for each in Rendered.of({}).all("Deployment"):
        if each["metadata"]["name"] != "fleet-paceline-redis":
            assert each["spec"]["strategy"]["rollingUpdate"]["maxUnavailable"] == 0
            assert container(each["spec"]["template"]["spec"])["readinessProbe"]


def test_pods_may_be_taken_away_before_others_come() -> None:
    strategy = {"strategy": {"type": "Recreate"}}
    rendered = Rendered.of({"gateway": strategy, "verifierPools": {"default": strategy}})
    for name in (GATEWAY, VERIFIER):
        assert rendered.one("Deployment", name)["spec"]["strategy"] == {"type": "Recreate"}


@pytest.mark.parametrize("tier", ["verifier", "drafter"])
def test_keda_asks_the_gateways_about_each_pool(tier: str) -> None:
    rendered = Rendered.of(
        {
            "autoscaling": {f"{tier}s": {"mode": "keda"}},
            f"{tier}Pools": {"other": {"autoscaling": {"maxReplicas": 5}}},
        }
    )
    assert set(rendered.names("ScaledObject")) == {
        f"fleet-paceline-{tier}-{pool}" for pool in ("default", "other")
    }
    scaled = rendered.one("ScaledObject", f"fleet-paceline-{tier}-other")["spec"]
    assert scaled["scaleTargetRef"]["name"] == f"fleet-paceline-{tier}-other"
    assert scaled["minReplicaCount"] == (0 if tier == "drafter" else 1)
    assert scaled["maxReplicaCount"] == 5
    (trigger,) = scaled["triggers"]
    assert trigger["type"] == "external-push"
    assert (trigger["metadata"]["tier"], trigger["metadata"]["pool"]) == (tier, "other")
    # The address is that of a Service, whose port leads to one that gateways open.
    host, _, port = trigger["metadata"]["scalerAddress"].partition(":")
    name, namespace, _ = host.split(".")
    assert namespace == "llm"
    (opened,) = [each for each in rendered.one("Service", name)["spec"]["ports"] if each["port"] == int(port)]
    gateway = container(rendered.pod("Deployment", GATEWAY))
    assert [each["containerPort"] for each in gateway["ports"] if each["name"] == opened["targetPort"]] == [
        int(port)
    ]
    assert environment(rendered.pod("Deployment", GATEWAY))["PACELINE_GATEWAY_SCALER_PORT"] == port
    # Who scales sets the number, not the chart.
    assert "replicas" not in rendered.one("Deployment", f"fleet-paceline-{tier}-other")["spec"]
    # The other tier is left alone.
    still = "drafter" if tier == "verifier" else "verifier"
    assert rendered.one("Deployment", f"fleet-paceline-{still}-default")["spec"]["replicas"] == 1


def test_a_group_of_nodes_is_scaled_as_one() -> None:
    rendered = Rendered.of(
        {
            "autoscaling": {"verifiers": {"mode": "keda"}},
            "verifierPools": {"default": {"gpus": 8, "nodes": 2}},
        }
    )
    target = rendered.one("ScaledObject", VERIFIER)["spec"]["scaleTargetRef"]
    assert target == {
        "apiVersion": "leaderworkerset.x-k8s.io/v1",
        "kind": "LeaderWorkerSet",
        "name": VERIFIER,
    }
    assert "replicas" not in rendered.one("LeaderWorkerSet", VERIFIER)["spec"]


def test_an_hpa_takes_the_same_number_from_prometheus() -> None:
    rendered = Rendered.of({"autoscaling": {"drafters": {"mode": "hpa"}}})
    scaler = rendered.one("HorizontalPodAutoscaler", DRAFTER)["spec"]
    # An HPA keeps one at least.
    assert scaler["minReplicas"] == 1
    (metric,) = scaler["metrics"]
    assert metric["external"]["metric"] == {
        "name": "paceline_recommended_replicas",
        "selector": {"matchLabels": {"tier": "drafter", "pool": "default"}},
    }
    assert not rendered.all("ScaledObject")
    assert "PACELINE_GATEWAY_SCALER_PORT" not in environment(rendered.pod("Deployment", GATEWAY))


def test_budgets_bound_evictions_of_each_pool() -> None:
    rendered = Rendered.of({"verifierPools": {"other": {"podDisruptionBudget": {"enabled": False}}}})
    assert set(rendered.names("PodDisruptionBudget")) == {GATEWAY, VERIFIER, DRAFTER}
    assert rendered.one("PodDisruptionBudget", VERIFIER)["spec"]["maxUnavailable"] == 1


def test_every_values_file_says_what_it_is_for() -> None:
    for file in (CHART / "values").glob("*.yaml"):
        assert file.read_text().startswith("# ")
