"""Makes the discovery that the settings ask for."""

from __future__ import annotations

from gateway.config import GatewaySettings
from gateway.discovery.base import Discovery, Endpoints
from gateway.discovery.dns import DnsDiscovery
from gateway.discovery.static import StaticDiscovery


def discovery_of(settings: GatewaySettings) -> Discovery:
    """How this gateway finds its pods."""
    verifiers, drafters = settings.verifier_addresses, settings.drafter_addresses
    if settings.discovery == "dns":
        return DnsDiscovery(verifiers, drafters, settings.dns_seconds)
    return StaticDiscovery(Endpoints.at(verifiers, drafters))
