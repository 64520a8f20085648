"""EndpointSlices read as the pods of a fleet: pure functions."""

from __future__ import annotations

import re
from collections.abc import Iterable

from gateway.discovery.base import Endpoint, Endpoints
from gateway.kubernetes.cluster import Object
from paceline.addresses import join_address

COMPONENT = "app.kubernetes.io/component"
POOL = "paceline.dev/pool"
MODEL = "paceline.dev/model"
VERIFIER, DRAFTER = "verifier", "drafter"
# Name of the port of a Service that speaks gRPC.
PORT = "grpc"

# Service labels are copied to its slices by Kubernetes.
SELECTOR = f"{COMPONENT} in ({VERIFIER},{DRAFTER})"


def label_value(text: str) -> str:
    """`text` as the value of a label: what is not allowed there is a hyphen, cut to 63 characters."""
    return re.sub(r"[^A-Za-z0-9._-]", "-", text)[:63].strip("-_.")


def endpoints_of(slices: Iterable[Object], model_name: str) -> Endpoints:
    """The pods of all slices, except those of another model.

    A pod that is not ready is left out; one that is being stopped is told as going.
    """
    ours = [each for each in slices if _label(each, MODEL) in ("", label_value(model_name))]
    return Endpoints(_pods(ours, VERIFIER), _pods(ours, DRAFTER))


def _pods(slices: Iterable[Object], component: str) -> tuple[Endpoint, ...]:
    found: dict[str, Endpoint] = {}
    # A pod with an address of each family is in a slice of each: IPv4's counts, as it comes first.
    for each in sorted(slices, key=lambda each: str(each["addressType"])):
        port = _port(each)
        if _label(each, COMPONENT) != component or port is None or each["addressType"] == "FQDN":
            continue
        for endpoint in each.get("endpoints") or ():
            pod = _endpoint(endpoint, port, _label(each, POOL))
            if pod is not None:
                key = pod.pod or pod.address
                known = found.setdefault(key, pod)
                # While slices are rearranged, an older one may still say that it is ready.
                if pod.going and not known.going:
                    found[key] = Endpoint(known.address, known.pool, known.pod, going=True)
    return tuple(sorted(found.values(), key=lambda pod: pod.address))


def _endpoint(endpoint: Object, port: int, pool: str) -> Endpoint | None:
    """None if it is not ready. What is not said of it counts as Kubernetes says that it should."""
    conditions = endpoint.get("conditions") or {}
    going = conditions.get("terminating") is True
    if not going and conditions.get("ready") is False:
        return None
    target = endpoint.get("targetRef") or {}
    pod = target.get("name", "") if target.get("kind") == "Pod" else ""
    # All of an endpoint's addresses reach the same pod.
    return Endpoint(join_address(endpoint["addresses"][0], port), pool, pod, going)


def _port(each: Object) -> int | None:
    """The port named `grpc`, or the only one without a name."""
    ports = {port.get("name") or "": port.get("port") for port in each.get("ports") or ()}
    return ports.get(PORT, ports.get("") if len(ports) == 1 else None)


def _label(each: Object, name: str) -> str:
    return str((each["metadata"].get("labels") or {}).get(name, ""))
