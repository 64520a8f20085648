"""A rendered chart as podman plays it on one machine, whose network all pods share."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from copy import deepcopy
from typing import Any

Object = dict[str, Any]

_PLAYED = ("ConfigMap", "Deployment")
# What a kubelet or a network of pods does, of which neither is here.
_LEFT_OUT = ("ports", "startupProbe", "livenessProbe", "readinessProbe", "lifecycle")


def secrets(objects: Iterable[Object]) -> dict[str, dict[str, str]]:
    """The secrets by name: each key's value in base64, as the API server keeps them."""
    found = {}
    for each in objects:
        if each["kind"] == "Secret":
            plain = {key: _encoded(text) for key, text in each.get("stringData", {}).items()}
            found[each["metadata"]["name"]] = {**each.get("data", {}), **plain}
    return found


def playable(objects: Sequence[Object]) -> list[Object]:
    """The workloads with their configuration, as podman 4.3 takes them.

    It plays no probes and no hooks; the check asks what probes ask. It keeps a Secret that it plays in a form
    that it does not read, so secrets are made beforehand, and what is mounted of one is a ConfigMap.
    """
    objects = deepcopy(objects)
    played = [each for each in objects if each["kind"] in _PLAYED]
    known = secrets(objects)
    mounted: dict[str, Object] = {}
    for workload in (each for each in played if each["kind"] == "Deployment"):
        pod = workload["spec"]["template"]["spec"]
        for container in pod["containers"]:
            for name in _LEFT_OUT:
                container.pop(name, None)
        for volume in pod["volumes"]:
            if secret := volume.pop("secret", None):
                name = secret["secretName"]
                mounted[name] = _config_map(name, known[name])
                items = {"items": secret["items"]} if "items" in secret else {}
                volume["configMap"] = {"name": f"mounted-{name}", **items}
    # What is referred to comes first.
    return [*mounted.values(), *sorted(played, key=lambda each: _PLAYED.index(each["kind"]))]


def helm_test(objects: Iterable[Object]) -> Object:
    """The container of the pod of `helm test` that streams a completion."""
    pods = (each for each in objects if each["kind"] == "Pod")
    (pod,) = (each for each in pods if each["metadata"]["name"].endswith("-completion"))
    (container,) = pod["spec"]["containers"]
    return dict(container)


def _config_map(name: str, data: dict[str, str]) -> Object:
    decoded = {key: base64.b64decode(value).decode() for key, value in data.items()}
    metadata = {"name": f"mounted-{name}"}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": decoded}


def _encoded(text: str) -> str:
    return base64.b64encode(text.encode()).decode()
