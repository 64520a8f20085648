"""What controllers and kubelets do to the objects of a fleet, done by the tests through the real client."""

from __future__ import annotations

from typing import Any

from kubernetes import client

from paceline.addresses import parse_address
from tests.kubernetes.api_server import ApiServer
from tests.kubernetes.patches import MERGE

NAMESPACE = "fleet"


class Controllers:
    """Keeps a Pod and a slice for each pod of a fleet. One slice each, as they differ in their ports."""

    def __init__(self, server: ApiServer, namespace: str = NAMESPACE) -> None:
        settings = client.Configuration()
        settings.host, settings.proxy = server.url, None
        api = client.ApiClient(settings)
        self.namespace = namespace
        self.core = client.CoreV1Api(api)
        self.discovery = client.DiscoveryV1Api(api)
        self.core.create_namespace({"metadata": {"name": namespace}})

    def add(self, component: str, address: str, *, pool: str = "default", **labels: str) -> str:
        """A pod that is ready, and how it is found; its name."""
        name = self.name(component, address)
        host, port = parse_address(address)
        labels = {"app.kubernetes.io/component": component, "paceline.dev/pool": pool, **labels}
        self.core.create_namespaced_pod(
            self.namespace,
            {
                "metadata": {"name": name, "labels": labels},
                "spec": {"containers": [{"name": component, "image": f"paceline-{component}"}]},
            },
        )
        self.discovery.create_namespaced_endpoint_slice(
            self.namespace,
            {
                "metadata": {"name": name, "labels": {**labels, "kubernetes.io/service-name": component}},
                "addressType": "IPv6" if ":" in host else "IPv4",
                "ports": [{"name": "metrics", "port": 9400}, {"name": "grpc", "port": port}],
                "endpoints": [_endpoint(host, name, ready=True)],
            },
        )
        return name

    def says(self, component: str, address: str, **conditions: bool) -> None:
        """The conditions of its endpoint become these."""
        name, (host, _) = self.name(component, address), parse_address(address)
        self.discovery.patch_namespaced_endpoint_slice(
            name,
            self.namespace,
            {"endpoints": [_endpoint(host, name, **conditions)]},
            _content_type=MERGE,
        )

    def stops(self, component: str, address: str) -> None:
        """It is deleted, and has its grace."""
        self.core.delete_namespaced_pod(self.name(component, address), self.namespace)
        self.says(component, address, ready=False, serving=True, terminating=True)

    def remove(self, component: str, address: str) -> None:
        """It is gone."""
        name = self.name(component, address)
        self.core.delete_namespaced_pod(name, self.namespace, grace_period_seconds=0)
        self.discovery.delete_namespaced_endpoint_slice(name, self.namespace)

    def annotations(self, component: str, address: str) -> dict[str, str]:
        """Those of its Pod."""
        pod = self.core.read_namespaced_pod(self.name(component, address), self.namespace)
        return dict(pod.metadata.annotations or {})

    def name(self, component: str, address: str) -> str:
        return f"{component}-{parse_address(address)[1]}"


def _endpoint(host: str, pod: str, **conditions: bool) -> dict[str, Any]:
    return {"addresses": [host], "conditions": conditions, "targetRef": {"kind": "Pod", "name": pod}}
