"""The API server of the tests, driven by the real client: it answers as Kubernetes does."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from kubernetes import client, config, watch
from kubernetes.client.exceptions import ApiException

from tests.kubernetes.api_server import ApiServer
from tests.kubernetes.patches import MERGE, STRATEGIC

LEASE = {"metadata": {"name": "l"}, "spec": {"holderIdentity": "a", "leaseDurationSeconds": 5}}


def pod(name: str, **labels: str) -> dict[str, Any]:
    return {
        "metadata": {"name": name, "labels": labels},
        "spec": {"containers": [{"name": "c", "image": "i"}]},
    }


def in_slice(name: str, address: str, service: str = "workers") -> dict[str, Any]:
    return {
        "metadata": {"name": name, "labels": {"kubernetes.io/service-name": service}},
        "addressType": "IPv4",
        "endpoints": [{"addresses": [address], "conditions": {"ready": True}}],
        "ports": [{"name": "grpc", "port": 9000}],
    }


class Kubernetes:
    """The real client's APIs, by a kubeconfig."""

    def __init__(self, kubeconfig: Path) -> None:
        settings = client.Configuration()
        config.load_kube_config(str(kubeconfig), client_configuration=settings)
        settings.proxy = None
        api = client.ApiClient(settings)
        self.core = client.CoreV1Api(api)
        self.slices = client.DiscoveryV1Api(api)
        self.leases = client.CoordinationV1Api(api)

    def annotate(self, name: str, **changes: Any) -> Any:
        """Patch a pod's annotations; `version` names what they are of."""
        metadata = {"resourceVersion": changes.pop("version")} if "version" in changes else {}
        patch = {"metadata": {**metadata, "annotations": changes}}
        return self.core.patch_namespaced_pod(name, "default", patch, _content_type=MERGE).metadata

    def change(self, name: str, patch: dict[str, Any]) -> None:
        """Patch an EndpointSlice."""
        self.slices.patch_namespaced_endpoint_slice(name, "default", patch, _content_type=STRATEGIC)

    def version(self) -> str:
        return str(self.slices.list_namespaced_endpoint_slice("default").metadata.resource_version)

    def watched(self, version: str | None, seconds: int = 1, **asked: Any) -> list[tuple[str, Any]]:
        events = watch.Watch().stream(
            self.slices.list_namespaced_endpoint_slice,
            "default",
            resource_version=version,
            timeout_seconds=seconds,
            **asked,
        )
        return [(event["type"], event["object"]) for event in events]


@pytest.fixture
def server() -> Iterator[ApiServer]:
    with ApiServer(bookmark_seconds=0.3) as made:
        yield made


@pytest.fixture
def api(server: ApiServer, tmp_path: Path) -> Kubernetes:
    return Kubernetes(server.kubeconfig(tmp_path / "config"))


def refused(error: pytest.ExceptionInfo[ApiException]) -> tuple[int, str]:
    return error.value.status, str(error.value.body)


def test_objects_are_found_by_labels_and_by_fields(api: Kubernetes) -> None:
    for name, labels in (("a", {"app": "w", "x": "1"}), ("b", {"app": "w"}), ("c", {"app": "v"})):
        api.core.create_namespaced_pod("default", pod(name, **labels))

    def names(**asked: str) -> list[str]:
        return [each.metadata.name for each in api.core.list_namespaced_pod("default", **asked).items]

    assert names() == ["a", "b", "c"]
    assert names(label_selector="app=w") == ["a", "b"]
    assert names(label_selector="app in (w, v),!x") == ["b", "c"]
    assert names(label_selector="app notin (w),app!=x") == ["c"]
    assert names(field_selector="metadata.name=b") == ["b"]
    assert names(field_selector="metadata.name!=b,status.phase=Pending") == ["a", "c"]
    with pytest.raises(ApiException) as error:
        names(field_selector="spec.nothing=b")
    assert refused(error)[0] == 400


def test_a_list_comes_in_pages_of_one_moment(api: Kubernetes, server: ApiServer) -> None:
    for number in range(5):
        api.core.create_namespaced_pod("default", pod(f"p{number}"))
    first = api.core.list_namespaced_pod("default", limit=2)
    api.core.delete_namespaced_pod("p3", "default", grace_period_seconds=0)
    api.core.create_namespaced_pod("default", pod("p9"))
    second = api.core.list_namespaced_pod("default", limit=9, _continue=first.metadata._continue)
    assert [each.metadata.name for each in (*first.items, *second.items)] == ["p0", "p1", "p2", "p3", "p4"]
    server.objects.compact()
    with pytest.raises(ApiException) as error:
        api.core.list_namespaced_pod("default", limit=2, _continue=first.metadata._continue)
    assert refused(error)[0] == 410


def test_a_stale_update_is_a_conflict(api: Kubernetes) -> None:
    api.leases.create_namespaced_lease("default", LEASE)
    first, second = (api.leases.read_namespaced_lease("l", "default") for _ in range(2))
    first.spec.holder_identity = "b"
    api.leases.replace_namespaced_lease("l", "default", first)
    with pytest.raises(ApiException) as error:
        api.leases.replace_namespaced_lease("l", "default", second)
    assert refused(error)[0] == 409
    assert api.leases.read_namespaced_lease("l", "default").spec.holder_identity == "b"
    # A lease says which version it updates.
    with pytest.raises(ApiException) as error:
        api.leases.replace_namespaced_lease("l", "default", LEASE)
    assert "metadata.resourceVersion: must be specified" in refused(error)[1]


def test_a_patch_changes_what_it_names_and_one_of_nothing_makes_no_version(api: Kubernetes) -> None:
    api.core.create_namespaced_pod("default", pod("p", app="w"))
    once, twice = (api.annotate("p", x="1") for _ in range(2))
    assert (once.annotations, once.labels) == ({"x": "1"}, {"app": "w"})
    assert twice.resource_version == once.resource_version
    assert not api.annotate("p", x=None).annotations
    with pytest.raises(ApiException) as error:
        api.annotate("p", y="1", version=once.resource_version)
    assert refused(error)[0] == 409


@pytest.mark.parametrize(
    ("body", "why"),
    [
        ({**pod("p"), "spec": {"containers": [{"name": "c", "imag": "i"}]}}, "'imag' was unexpected"),
        ({**pod("p"), "spec": {"containers": [{"name": "c", "image": 1}]}}, "1 is not of type"),
        (pod("P"), "metadata.name"),
        (pod("p", app="no spaces"), "metadata.labels"),
        ({"spec": pod("p")["spec"], "metadata": {}}, "name or generateName is required"),
    ],
    ids=["misspelt", "type", "name", "label", "nameless"],
)
def test_what_kubernetes_would_not_keep_is_refused(server: ApiServer, body: Any, why: str) -> None:
    # The client would not even send some of it.
    answer = httpx.post(f"{server.url}/api/v1/namespaces/default/pods", json=body)
    assert (answer.status_code, answer.json()["reason"]) == (422, "Invalid")
    assert why in answer.json()["message"]


@pytest.mark.parametrize("cost", ["2147483648", "1.5", "many", "+1"])
def test_a_deletion_cost_is_an_integer_of_32_bits(api: Kubernetes, cost: str) -> None:
    api.core.create_namespaced_pod("default", pod("p"))

    key = "controller.kubernetes.io/pod-deletion-cost"
    assert api.annotate("p", **{key: "-2147483648"}).annotations
    with pytest.raises(ApiException) as error:
        api.annotate("p", **{key: cost})
    assert refused(error)[0] == 422


def test_a_pod_has_its_grace(api: Kubernetes) -> None:
    api.core.create_namespaced_pod("default", pod("p"))
    api.core.delete_namespaced_pod("p", "default", grace_period_seconds=7)
    going = api.core.read_namespaced_pod("p", "default").metadata
    assert (going.deletion_grace_period_seconds, going.deletion_timestamp is None) == (7, False)
    api.core.delete_namespaced_pod("p", "default", grace_period_seconds=0)
    with pytest.raises(ApiException) as error:
        api.core.read_namespaced_pod("p", "default")
    assert refused(error)[0] == 404


def test_its_status_changes_only_by_its_own_path(api: Kubernetes) -> None:
    api.core.create_namespaced_pod("default", pod("p"))
    change = {"metadata": {"labels": {"a": "b"}}, "status": {"phase": "Running"}}
    by_main = api.core.patch_namespaced_pod("p", "default", change, _content_type=MERGE)
    assert (by_main.status.phase, by_main.metadata.labels) == ("Pending", {"a": "b"})
    by_status = api.core.patch_namespaced_pod_status("p", "default", change, _content_type=MERGE)
    assert by_status.status.phase == "Running"


def test_a_watch_tells_what_happens_to_what_its_selector_takes(api: Kubernetes) -> None:
    version = api.version()
    api.slices.create_namespaced_endpoint_slice("default", in_slice("e", "10.0.0.1"))
    api.slices.create_namespaced_endpoint_slice("default", in_slice("other", "10.0.0.9", "others"))
    api.change("e", {"endpoints": [{"addresses": ["10.0.0.2"]}]})
    api.change("e", {"metadata": {"labels": {"kubernetes.io/service-name": "others"}}})
    told = api.watched(version, label_selector="kubernetes.io/service-name=workers")
    assert [kind for kind, _ in told] == ["ADDED", "MODIFIED", "DELETED"]
    assert [each.endpoints[0].addresses for _, each in told] == [["10.0.0.1"], ["10.0.0.2"], ["10.0.0.2"]]
    # It no longer has the label: the version is that of its going all the same.
    assert int(told[2][1].metadata.resource_version) == int(api.version())


def test_a_watch_hears_what_happens_while_it_lasts(api: Kubernetes) -> None:
    later = threading.Timer(
        0.2, api.slices.create_namespaced_endpoint_slice, ("default", in_slice("e", "10.0.0.1"))
    )
    later.start()
    assert [kind for kind, _ in api.watched(api.version())] == ["ADDED"]
    later.join()


def test_a_watch_from_no_version_begins_with_what_there_is(api: Kubernetes) -> None:
    api.slices.create_namespaced_endpoint_slice("default", in_slice("e", "10.0.0.1"))
    assert [kind for kind, _ in api.watched("0")] == ["ADDED"]


def test_bookmarks_say_how_far_a_watch_has_come(api: Kubernetes) -> None:
    version = api.version()
    api.core.create_namespaced_pod("default", pod("p"))
    told = api.watched(version, allow_watch_bookmarks=True)
    assert told
    assert {kind for kind, _ in told} == {"BOOKMARK"}
    assert int(told[-1][1]["metadata"]["resourceVersion"]) == int(version) + 1


def test_what_is_compacted_is_gone(api: Kubernetes, server: ApiServer) -> None:
    version = api.version()
    api.core.create_namespaced_pod("default", pod("p"))
    server.objects.compact()
    with pytest.raises(ApiException) as error:
        api.watched(version)
    assert error.value.status == 410
    assert api.watched(api.version()) == []


def test_a_server_that_is_started_again_has_what_it_had(api: Kubernetes, server: ApiServer) -> None:
    api.core.create_namespaced_pod("default", pod("p"))
    version = api.version()
    server.stop()
    with pytest.raises(Exception, match=r"refused|reset"):
        api.version()
    server.start()
    assert api.version() == version


def test_a_token_may_do_what_its_role_says(server: ApiServer, tmp_path: Path) -> None:
    server.rules["t"] = [{"apiGroups": [""], "resources": ["pods"], "verbs": ["list"]}]
    holder = Kubernetes(server.kubeconfig(tmp_path / "t", token="t"))
    assert holder.core.list_namespaced_pod("default").items == []
    with pytest.raises(ApiException) as error:
        holder.core.read_namespaced_pod("p", "default")
    assert refused(error)[0] == 403
    stranger = Kubernetes(server.kubeconfig(tmp_path / "s", token="s"))
    with pytest.raises(ApiException) as error:
        stranger.core.list_namespaced_pod("default")
    assert refused(error)[0] == 401
