"""The Kubernetes API server: where it is, who we are there, and the requests that we send."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, TypeAlias

import yaml
from kubernetes import client, config

# An object as JSON has it: what a model class of the client would say of its types is not worth their memory.
Object: TypeAlias = dict[str, Any]

_SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
_CONNECT_SECONDS = 5.0
# How long a list or a patch may be without an answer.
_ANSWER_SECONDS = 30.0
# How much longer than it was asked to last a watch may be silent: it is broken then.
_SILENT_SECONDS = 10.0
_PAGE = 500


class ClusterError(Exception):
    """There is no way to the API server; the message says what is missing."""


class Cluster:
    """One namespace. Methods block, and raise what the client raises; any thread may call them."""

    def __init__(
        self, kubeconfig: Path | None = None, namespace: str = "", *, use_http_proxy: bool = False
    ) -> None:
        """By `kubeconfig`, or as the service account of the pod that this process runs in.

        An empty `namespace` is the pod's, or that of the file's context. Raises `ClusterError`.
        """
        settings = client.Configuration()
        try:
            if kubeconfig is None:
                config.load_incluster_config(client_configuration=settings)
            else:
                config.load_kube_config(str(kubeconfig), client_configuration=settings)
            self.namespace = namespace or _own_namespace(kubeconfig)
        except (config.ConfigException, OSError, yaml.YAMLError) as error:
            raise ClusterError(" ".join(str(error).split())) from error
        if not use_http_proxy:
            settings.proxy = None
        # Whoever calls tries again by itself, and waits in between.
        settings.retries = False
        settings.keep_alive = True
        self._api = client.ApiClient(settings)
        self._slices = client.DiscoveryV1Api(self._api)

    def endpoint_slices(self, selector: str) -> tuple[list[Object], str]:
        """All EndpointSlices that `selector` takes, and the version of this list."""
        found: list[Object] = []
        more: str | None = None
        while True:
            with closing(
                self._slices.list_namespaced_endpoint_slice(
                    self.namespace,
                    label_selector=selector,
                    limit=_PAGE,
                    _continue=more,
                    _preload_content=False,
                    _request_timeout=(_CONNECT_SECONDS, _ANSWER_SECONDS),
                )
            ) as response:
                listed = json.loads(response.data)
            found += listed["items"]
            more = listed["metadata"].get("continue")
            if not more:
                return found, listed["metadata"]["resourceVersion"]

    def endpoint_slice_events(self, selector: str, version: str, seconds: int) -> Iterator[Object]:
        """What happens to them after `version`, for at most so long: events as a watch tells them."""
        with closing(
            self._slices.list_namespaced_endpoint_slice(
                self.namespace,
                label_selector=selector,
                watch=True,
                resource_version=version,
                allow_watch_bookmarks=True,
                timeout_seconds=seconds,
                _preload_content=False,
                _request_timeout=(_CONNECT_SECONDS, seconds + _SILENT_SECONDS),
            )
        ) as response:
            for line in response:
                yield json.loads(line)

    def annotate_pod(self, name: str, annotations: dict[str, str]) -> None:
        """Set annotations of a pod; others stay."""
        # By its path: the client's class of all that there is for pods takes 20 MB of memory.
        request = self._api.param_serialize(
            "PATCH",
            "/api/v1/namespaces/{namespace}/pods/{name}",
            path_params={"namespace": self.namespace, "name": name},
            header_params={"Accept": "application/json", "Content-Type": "application/merge-patch+json"},
            body={"metadata": {"annotations": annotations}},
            auth_settings=["BearerToken"],
        )
        response = self._api.call_api(*request, _request_timeout=(_CONNECT_SECONDS, _ANSWER_SECONDS))
        response.read()
        # Raises for what is no success.
        self._api.response_deserialize(response, {})


def _own_namespace(kubeconfig: Path | None) -> str:
    if kubeconfig is None:
        return (_SERVICE_ACCOUNT / "namespace").read_text().strip()
    _, active = config.list_kube_config_contexts(str(kubeconfig))
    return str(active["context"].get("namespace") or "default")
