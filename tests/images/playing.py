"""A rendered chart's objects as podman plays them, one workload at a time."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

Object = dict[str, Any]

ACCOUNT = "/var/run/secrets/kubernetes.io/serviceaccount"
# Before the name of a Secret: the ConfigMap that holds it, and podman's volume of that.
MOUNTED = "mounted-"

# What a kubelet and the network do, and `cluster` in their place. podman would publish ports on this machine.
_LEFT_OUT = ("ports", "startupProbe", "livenessProbe", "readinessProbe", "lifecycle")


def secrets(objects: Iterable[Object]) -> dict[str, dict[str, str]]:
    """The secrets by name: each key's value in base64, as the API server keeps them."""
    found = {}
    for each in objects:
        if each["kind"] == "Secret":
            plain = {key: _encoded(text) for key, text in each.get("stringData", {}).items()}
            found[each["metadata"]["name"]] = {**each.get("data", {}), **plain}
    return found


def deployments(objects: Iterable[Object]) -> dict[str, Object]:
    """The Deployments by name."""
    return {each["metadata"]["name"]: each for each in objects if each["kind"] == "Deployment"}


def playable(objects: Sequence[Object], each: Object, name: str) -> list[Object]:
    """A Deployment, or the Pod of a test, under another name and behind the ConfigMaps that it mounts.

    podman 4.3 plays no probes and no hooks. It keeps a Secret that it plays in a form that it does not read:
    secrets are made beforehand, and what is mounted of one is a ConfigMap. Pods that it plays share volumes
    of one name, an `emptyDir` too. A claim it takes for a volume of that name, and makes it if need be.
    """
    each = deepcopy(each)
    each["metadata"]["name"] = name
    pod = each["spec"] if each["kind"] == "Pod" else each["spec"]["template"]["spec"]
    for container in pod["containers"]:
        for left_out in _LEFT_OUT:
            container.pop(left_out, None)
        for mount in container["volumeMounts"]:
            mount["name"] = f"{name}-{mount['name']}"
    maps: dict[str, Object] = {}
    kept = {each["metadata"]["name"]: each for each in objects if each["kind"] == "ConfigMap"}
    for volume in pod["volumes"]:
        volume["name"] = f"{name}-{volume['name']}"
        if secret := volume.pop("secret", None):
            source = secret["secretName"]
            volume["configMap"] = {"name": MOUNTED + source, **_items(secret)}
            maps[MOUNTED + source] = _config_map(MOUNTED + source, secrets(objects)[source])
        elif mounted := volume.get("configMap"):
            maps[mounted["name"]] = kept[mounted["name"]]
    return [*maps.values(), each]


def with_account(deployment: Object, account: Path, host: str, port: int) -> Object:
    """A Deployment whose pods have their account and know where the API server is, as kubelets do it."""
    deployment = deepcopy(deployment)
    pod = deployment["spec"]["template"]["spec"]
    if pod["automountServiceAccountToken"]:
        (container,) = pod["containers"]
        container["env"].append({"name": "KUBERNETES_SERVICE_HOST", "value": host})
        container["env"].append({"name": "KUBERNETES_SERVICE_PORT", "value": str(port)})
        container["volumeMounts"].append({"name": "account", "mountPath": ACCOUNT, "readOnly": True})
        pod["volumes"].append({"name": "account", "hostPath": {"path": str(account)}})
    return deployment


def pod_of_test(objects: Iterable[Object], name: str) -> Object:
    """A pod of `helm test`, by the end of its name."""
    pods = (each for each in objects if each["kind"] == "Pod")
    (pod,) = (each for each in pods if each["metadata"]["name"].endswith(f"-test-{name}"))
    return pod


def _items(secret: Object) -> Object:
    return {"items": secret["items"]} if "items" in secret else {}


def _config_map(name: str, data: dict[str, str]) -> Object:
    decoded = {key: base64.b64decode(value).decode() for key, value in data.items()}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": decoded}


def _encoded(text: str) -> str:
    return base64.b64encode(text.encode()).decode()
