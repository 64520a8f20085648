"""Where the fleet's pods are: given once, looked up by DNS, or told by the Kubernetes API."""

from gateway.discovery.base import Discovery, Endpoint, Endpoints
from gateway.discovery.static import StaticDiscovery

__all__ = ["Discovery", "Endpoint", "Endpoints", "StaticDiscovery"]
