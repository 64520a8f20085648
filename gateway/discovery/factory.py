"""Makes the discovery that the settings ask for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gateway.config import GatewaySettings
from gateway.discovery.base import Discovery, Endpoints
from gateway.discovery.dns import DnsDiscovery
from gateway.discovery.static import StaticDiscovery
from paceline.service.settings import SettingsError

if TYPE_CHECKING:
    from gateway.kubernetes.cluster import Cluster


def cluster_of(settings: GatewaySettings) -> Cluster | None:
    """The Kubernetes cluster to find pods in, if any. Raises `SettingsError`."""
    if settings.discovery != "kubernetes":
        return None
    # Here, as the client of Kubernetes takes a second to import and tens of megabytes.
    from gateway.kubernetes.cluster import Cluster, ClusterError

    try:
        return Cluster(
            settings.kubeconfig, settings.kubernetes_namespace, use_http_proxy=settings.use_http_proxy
        )
    except ClusterError as error:
        raise SettingsError(f"--discovery kubernetes: no way to the API server: {error}") from error


def discovery_of(settings: GatewaySettings, cluster: Cluster | None) -> Discovery:
    """How this gateway finds its pods."""
    if cluster is not None:
        from gateway.discovery.kubernetes import KubernetesDiscovery

        return KubernetesDiscovery(cluster, settings.served_model_name, settings.kubernetes_selector)
    verifiers, drafters = settings.verifier_addresses, settings.drafter_addresses
    if settings.discovery == "dns":
        return DnsDiscovery(verifiers, drafters, settings.dns_seconds)
    return StaticDiscovery(Endpoints.at(verifiers, drafters))
