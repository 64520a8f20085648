"""Pools of drafters that run models: image, weights, caches, GPUs, and what verifiers keep for them."""

from __future__ import annotations

from typing import Any

import pytest

from tests.deploy.rendering import CHART, RefusedError, Rendered, container, environment
from tests.deploy.test_chart import volume_of

TEXT = "fleet-paceline-drafter-default"
NEURAL = "fleet-paceline-drafter-gpu"
VERIFIER = "fleet-paceline-verifier-default"
MODELS = "/var/cache/paceline/models"
KERNELS = "/var/cache/paceline/kernels"


def rendered(pool: dict[str, Any] | None = None, **values: Any) -> Rendered:
    """A release with a pool `gpu` of the variant neural, beside the default one from the text."""
    settings = {"draftModel": "owner/small"} | (pool or {}).get("settings", {})
    gpu = {"variant": "neural", "gpus": 1, **(pool or {}), "settings": settings}
    return Rendered.of({"drafterPools": {"gpu": gpu}, **values})


def head(**pool: Any) -> dict[str, Any]:
    return {"settings": {"method": "lookup+recycling+eagle"}, **pool}


KEPT = {"verifier": {"settings": {"keepStates": "eagle"}}}


def test_a_pool_with_models_stands_beside_one_without() -> None:
    both = rendered()
    text, neural = both.pod("Deployment", TEXT), both.pod("Deployment", NEURAL)
    assert container(text)["image"] == "paceline-drafter:0.1.0"
    assert container(neural)["image"] == "paceline-neural-drafter:0.1.0"
    assert container(neural)["resources"]["limits"]["nvidia.com/gpu"] == 1
    assert "nvidia.com/gpu" not in container(text)["resources"]["limits"]
    told = environment(neural)
    assert told["PACELINE_DRAFTER_METHOD"] == "lookup+recycling+draft"
    assert told["PACELINE_DRAFTER_DRAFT_MODEL"] == "owner/small"
    assert not any("MODEL" in name or "CACHE" in name for name in environment(text))
    assert {mount["mountPath"] for mount in container(text)["volumeMounts"]} == {"/tmp"}


def test_what_all_pools_with_models_have_a_pool_may_say_otherwise() -> None:
    all_of_them = {
        "image": {"repository": "a/b", "tag": "main"},
        "settings": {"method": "draft", "dtype": "bfloat16"},
        "resources": {"limits": {"memory": "20Gi"}},
        "startupSeconds": 1000,
    }
    pool = {"settings": {"device": "cuda:0", "dtype": "float16"}, "image": {"tag": "next"}}
    neural = rendered(pool, neuralDrafter=all_of_them, drafter={"settings": {"threads": 2}})
    pod = container(neural.pod("Deployment", NEURAL))
    assert pod["image"] == "a/b:next"
    assert pod["resources"]["limits"] == {"memory": "20Gi", "nvidia.com/gpu": 1}
    probe = pod["startupProbe"]
    assert probe["periodSeconds"] * probe["failureThreshold"] >= 1000
    told = environment(neural.pod("Deployment", NEURAL))
    settings = {"METHOD": "draft", "DEVICE": "cuda:0", "DTYPE": "float16", "THREADS": "2"}
    assert (
        settings.items()
        <= {name.removeprefix("PACELINE_DRAFTER_"): value for name, value in told.items()}.items()
    )


def test_every_pool_may_run_models() -> None:
    drafter = {"variant": "neural", "settings": {"draftModel": "/weights/small"}}
    pod = Rendered.of({"drafter": drafter}).pod("Deployment", TEXT)
    assert container(pod)["image"] == "paceline-neural-drafter:0.1.0"
    text = Rendered.of({"drafter": drafter, "drafterPools": {"default": {"variant": "text"}}})
    assert container(text.pod("Deployment", TEXT))["image"] == "paceline-drafter:0.1.0"


@pytest.mark.parametrize(
    ("weights", "volume"),
    [
        (
            {"type": "persistentVolumeClaim", "existingClaim": "heads"},
            {"persistentVolumeClaim": {"claimName": "heads", "readOnly": True}},
        ),
        (
            {"type": "hostPath", "hostPath": "/srv/heads"},
            {"hostPath": {"path": "/srv/heads", "type": "Directory"}},
        ),
    ],
    ids=["claim", "path"],
)
def test_weights_come_from_a_volume_that_is_only_read(
    weights: dict[str, str], volume: dict[str, Any]
) -> None:
    pool = head(weights=weights | {"mountPath": "/w"})
    pool["settings"]["heads"] = "/w/heads"
    pod = rendered(pool, **KEPT).pod("Deployment", NEURAL)
    assert volume_of(pod, "/w") == volume
    (mount,) = [each for each in container(pod)["volumeMounts"] if each["mountPath"] == "/w"]
    assert mount["readOnly"] is True
    assert environment(pod)["PACELINE_DRAFTER_HEADS"] == "/w/heads"


def test_tables_of_the_text_may_come_from_a_volume_too() -> None:
    weights = {"type": "hostPath", "hostPath": "/srv/tables"}
    pod = Rendered.of({"drafter": {"weights": weights}}).pod("Deployment", TEXT)
    assert volume_of(pod, "/weights") == {"hostPath": {"path": "/srv/tables", "type": "Directory"}}


def test_a_head_reads_the_targets_weights_from_the_fleets_cache() -> None:
    model = {"source": "owner/name", "cache": {"type": "hostPath", "hostPath": "/srv/models"}}
    fleet = rendered(head(), model=model, **KEPT)
    pod = fleet.pod("Deployment", NEURAL)
    assert environment(pod)["PACELINE_DRAFTER_MODEL"] == "owner/name"
    assert environment(pod)["HF_HOME"] == f"{MODELS}/huggingface"
    assert volume_of(pod, MODELS) == volume_of(fleet.pod("Deployment", VERIFIER), MODELS)
    own = rendered(head(sharesModelCache=False), model=model, **KEPT).pod("Deployment", NEURAL)
    assert volume_of(own, MODELS) == {"emptyDir": {}}


def test_compiled_kernels_are_kept_where_is_said() -> None:
    pod = rendered({"kernelCache": {"hostPath": "/srv/kernels"}}).pod("Deployment", NEURAL)
    assert volume_of(pod, KERNELS) == {"hostPath": {"path": "/srv/kernels", "type": "DirectoryOrCreate"}}
    assert environment(pod)["TRITON_CACHE_DIR"].startswith(KERNELS)
    pod = rendered({"kernelCache": {"sizeLimit": "1Gi"}}).pod("Deployment", NEURAL)
    assert volume_of(pod, KERNELS) == {"emptyDir": {"sizeLimit": "1Gi"}}


@pytest.mark.parametrize(
    ("pool", "fetched"),
    [
        ({}, ["owner/small"]),
        ({"settings": {"draftModel": "/weights/small"}}, []),
        (head(), ["owner/name"]),
        ({"settings": {"method": "draft+eagle"}}, ["owner/name", "owner/small"]),
    ],
    ids=["draft model", "draft model of a volume", "head", "both"],
)
def test_a_pool_fetches_what_its_method_reads(pool: dict[str, Any], fetched: list[str]) -> None:
    model = {"source": "owner/name", "fetch": True, "hubToken": {"existingSecret": "hub"}}
    extra = [{"name": "first", "image": "other"}]
    fleet = rendered(pool, model=model, drafter={"extraInitContainers": extra}, **KEPT)
    pod = fleet.pod("Deployment", NEURAL)
    first, *fetching = pod["initContainers"]
    assert first == extra[0]
    assert [each["command"][-1] for each in fetching] == fetched
    for each in fetching:
        assert each["command"][:3] == ["paceline", "model", "fetch"]
        assert each["image"] == container(pod)["image"]
        (token,) = [variable for variable in each["env"] if variable["name"] == "HF_TOKEN"]
        assert token["valueFrom"]["secretKeyRef"] == {"name": "hub", "key": "token"}
    # One from the text has nothing to fetch.
    assert fleet.pod("Deployment", TEXT)["initContainers"] == extra


def test_a_rollout_waits_for_a_pod_that_fetches() -> None:
    deployment = rendered({"startupSeconds": 7200}).one("Deployment", NEURAL)
    assert deployment["spec"]["progressDeadlineSeconds"] > 7200


def test_verifiers_keep_what_they_are_told() -> None:
    values = {"verifierPools": {"other": {"settings": {"keepStates": "2,15,27"}}}, **KEPT}
    fleet = Rendered.of(values)
    kept = [
        environment(fleet.pod("Deployment", f"fleet-paceline-verifier-{pool}"))[
            "PACELINE_VERIFIER_KEEP_STATES"
        ]
        for pool in ("default", "other")
    ]
    assert kept == ["eagle", "2,15,27"]
    told = environment(Rendered.of({}).pod("Deployment", VERIFIER))
    assert "PACELINE_VERIFIER_KEEP_STATES" not in told


@pytest.mark.parametrize(
    ("values", "why"),
    [
        ({"drafter": {"settings": {"method": "lookup+eagle"}}}, "set drafterPools.default.variant to neural"),
        ({"drafter": {"variant": "neural"}}, "name the model in drafterPools.default.settings.draftModel"),
        (
            {"drafterPools": {"gpu": {"variant": "neural", **head()}}},
            "set verifier.settings.keepStates to eagle",
        ),
        ({"drafter": {"weights": {"type": "persistentVolumeClaim"}}}, "weights.existingClaim"),
        ({"drafter": {"weights": {"type": "hostPath"}}}, "weights.hostPath"),
    ],
)
def test_a_pool_that_could_not_draft_is_refused_with_what_to_do(values: dict[str, Any], why: str) -> None:
    with pytest.raises(RefusedError, match=why):
        Rendered.of(values)


def test_a_release_without_verifiers_of_its_own_may_draft_with_a_head() -> None:
    discovery = {"gateway": {"discovery": {"mode": "static", "verifiers": ["elsewhere:9000"]}}}
    assert rendered(head(), verifierPools={"default": None}, **discovery).names("Deployment")


@pytest.mark.parametrize("hub", [True, False])
def test_only_pods_that_run_models_reach_the_hub(hub: bool) -> None:
    fleet = rendered(networkPolicy={"modelHub": hub})
    reaching = []
    for pool in (TEXT, NEURAL):
        labels = fleet.one("Deployment", pool)["spec"]["template"]["metadata"]["labels"]
        for policy in fleet.all("NetworkPolicy"):
            if policy["spec"]["podSelector"]["matchLabels"].items() <= labels.items():
                rules = policy["spec"].get("egress", ())
                ports = [port["port"] for rule in rules for port in rule.get("ports", ())]
                reaching += [pool] if 443 in ports else []
    assert reaching == ([NEURAL] if hub else [])


def test_the_fleets_values_have_pools_of_both_kinds() -> None:
    fleet = Rendered.of(None, CHART / "values" / "production.yaml")
    pods = [fleet.pod("Deployment", f"fleet-paceline-drafter-{pool}") for pool in ("default", "spot")]
    assert ["neural" in container(pod)["image"] for pod in pods] == [False, True]
    assert ["nvidia.com/gpu" in container(pod)["resources"]["limits"] for pod in pods] == [False, True]
