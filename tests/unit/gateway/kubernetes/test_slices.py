"""EndpointSlices, read as the pods of a fleet."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.discovery import Endpoint, Endpoints
from gateway.kubernetes.slices import endpoints_of, label_value

LABELS = {"app.kubernetes.io/component": "verifier", "paceline.dev/pool": "big"}


def endpoint(address: str = "10.0.0.1", pod: str = "v-0", **conditions: Any) -> dict[str, Any]:
    target = {"targetRef": {"kind": "Pod", "name": pod}} if pod else {}
    return {"addresses": [address], "conditions": conditions, **target}


def in_slice(*endpoints: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """A slice of the verifiers' Service."""
    return {
        "metadata": {"name": "s", "labels": {**LABELS, **changes.pop("labels", {})}},
        "addressType": "IPv4",
        "ports": [{"name": "grpc", "port": 9000}],
        "endpoints": list(endpoints),
        **changes,
    }


def found(*slices: dict[str, Any], model: str = "m") -> list[str]:
    return [each.address for each in endpoints_of(slices, model).verifiers]


def test_a_ready_endpoint_is_a_pod_with_its_name_and_pool() -> None:
    pod = Endpoint("10.0.0.1:9000", "big", "v-0")
    assert endpoints_of([in_slice(endpoint(ready=True))], "m") == Endpoints((pod,))


def test_the_component_says_what_it_is() -> None:
    drafter = {"app.kubernetes.io/component": "drafter"}
    made = endpoints_of([in_slice(endpoint(), labels=drafter)], "m")
    assert (made.verifiers, [each.address for each in made.drafters]) == ((), ["10.0.0.1:9000"])
    assert (
        endpoints_of([in_slice(endpoint(), labels={"app.kubernetes.io/component": "x"})], "m") == Endpoints()
    )


@pytest.mark.parametrize(
    ("conditions", "there", "going"),
    [
        ({}, True, False),
        ({"ready": True, "serving": True, "terminating": False}, True, False),
        ({"ready": False}, False, False),
        ({"ready": False, "serving": False, "terminating": False}, False, False),
        ({"ready": False, "serving": True, "terminating": True}, True, True),
        ({"ready": False, "serving": False, "terminating": True}, True, True),
        # Its Service publishes addresses that are not ready.
        ({"ready": True, "serving": True, "terminating": True}, True, True),
    ],
)
def test_conditions(conditions: dict[str, Any], there: bool, going: bool) -> None:
    pods = endpoints_of([in_slice(endpoint(**conditions))], "m").verifiers
    assert [each.going for each in pods] == [going] * there


@pytest.mark.parametrize(
    ("ports", "port"),
    [
        ([{"name": "metrics", "port": 9400}, {"name": "grpc", "port": 9001}], 9001),
        ([{"name": "", "port": 9002}], 9002),
        ([{"port": 9003}], 9003),
        ([{"name": "metrics", "port": 9400}], None),
        ([{"name": "grpc", "port": None}], None),
        ([], None),
        (None, None),
    ],
)
def test_the_port_is_the_named_one_or_the_only_one(ports: Any, port: int | None) -> None:
    assert found(in_slice(endpoint(), ports=ports)) == ([f"10.0.0.1:{port}"] if port else [])


def test_slices_are_taken_together_in_one_order() -> None:
    one = in_slice(endpoint("10.0.0.3", "v-2"), endpoint("10.0.0.1", "v-0"))
    other = in_slice(endpoint("10.0.0.2", "v-1"), endpoints=None), in_slice(endpoint("10.0.0.2", "v-1"))
    assert found(one, *other) == found(*other, one) == ["10.0.0.1:9000", "10.0.0.2:9000", "10.0.0.3:9000"]


def test_a_pod_in_two_slices_counts_once_and_goes_if_either_says_so() -> None:
    ready, going = in_slice(endpoint(ready=True)), in_slice(endpoint(ready=False, terminating=True))
    for slices in ([ready, going], [going, ready]):
        (pod,) = endpoints_of(slices, "m").verifiers
        assert pod.going


def test_a_pod_with_an_address_of_each_family_counts_once() -> None:
    v6 = in_slice(endpoint("fd00::1"), addressType="IPv6")
    assert found(v6, in_slice(endpoint("10.0.0.1"))) == ["10.0.0.1:9000"]
    assert found(v6) == ["[fd00::1]:9000"]


def test_names_are_no_addresses_here() -> None:
    assert found(in_slice(endpoint("v.example.com"), addressType="FQDN")) == []


def test_endpoints_without_a_pod_are_told_apart_by_their_addresses() -> None:
    assert found(in_slice(endpoint("10.0.0.1", ""), endpoint("10.0.0.2", ""))) == [
        "10.0.0.1:9000",
        "10.0.0.2:9000",
    ]


def test_slices_of_another_model_are_left_out() -> None:
    ours = in_slice(endpoint("10.0.0.1", "a"), labels={"paceline.dev/model": "Qwen-Qwen3-8B"})
    other = in_slice(endpoint("10.0.0.2", "b"), labels={"paceline.dev/model": "other"})
    unsaid = in_slice(endpoint("10.0.0.3", "c"))
    assert found(ours, other, unsaid, model="Qwen/Qwen3-8B") == ["10.0.0.1:9000", "10.0.0.3:9000"]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("tiny", "tiny"),
        ("Qwen/Qwen3-8B", "Qwen-Qwen3-8B"),
        ("_a b_", "a-b"),
        ("x" * 62 + "/y", "x" * 62),
        ("", ""),
    ],
)
def test_a_model_s_name_as_a_label(text: str, value: str) -> None:
    assert label_value(text) == value
