"""Makes the discovery that the settings ask for."""

from __future__ import annotations

from gateway.config import GatewaySettings
from gateway.discovery.base import Discovery, Endpoints
from gateway.discovery.dns import DnsDiscovery
from gateway.discovery.static import StaticDiscovery
from paceline.service.settings import SettingsError


def discovery_of(settings: GatewaySettings) -> Discovery:
    """How this gateway finds its pods. Raises `SettingsError`."""
    verifiers, drafters = settings.verifier_addresses, settings.drafter_addresses
    if settings.discovery == "kubernetes":
        return _in_kubernetes(settings)
    if settings.discovery == "dns":
        return DnsDiscovery(verifiers, drafters, settings.dns_seconds)
    return StaticDiscovery(Endpoints.at(verifiers, drafters))


def _in_kubernetes(settings: GatewaySettings) -> Discovery:
    # Here, as the client of Kubernetes takes a second to import and tens of megabytes.
    from gateway.discovery.kubernetes import KubernetesDiscovery
    from gateway.kubernetes.cluster import Cluster, ClusterError

    try:
        cluster = Cluster(
            settings.kubeconfig, settings.kubernetes_namespace, use_http_proxy=settings.use_http_proxy
        )
    except ClusterError as error:
        raise SettingsError(f"--discovery kubernetes: no way to the API server: {error}") from error
    return KubernetesDiscovery(cluster, settings.served_model_name, settings.kubernetes_selector)
