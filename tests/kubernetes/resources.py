"""The kinds of objects that the API server of the tests keeps, and what an error of it looks like."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

Object: TypeAlias = dict[str, Any]


class ApiError(Exception):
    """An answer that is an error, as the API server would word it."""

    def __init__(self, code: int, reason: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.reason = reason

    def status(self) -> Object:
        """The body of the answer."""
        return {
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": str(self),
            "reason": self.reason,
            "code": self.code,
        }


@dataclass(frozen=True, slots=True)
class Resource:
    """One kind, as paths and manifests name it."""

    group: str
    version: str
    plural: str
    kind: str
    short: tuple[str, ...] = ()
    namespaced: bool = True
    # Whether an update must say which version it is of.
    versioned_updates: bool = False
    has_status: bool = False

    @property
    def group_version(self) -> str:
        """As `apiVersion` has it."""
        return f"{self.group}/{self.version}" if self.group else self.version

    def described(self) -> Object:
        """As the discovery document has it."""
        verbs = ["create", "delete", "get", "list", "patch", "update", "watch"]
        return {
            "name": self.plural,
            "singularName": self.kind.lower(),
            "namespaced": self.namespaced,
            "kind": self.kind,
            "shortNames": list(self.short),
            "verbs": verbs,
        }


NAMESPACES = Resource("", "v1", "namespaces", "Namespace", ("ns",), namespaced=False, has_status=True)
PODS = Resource("", "v1", "pods", "Pod", ("po",), has_status=True)
SERVICES = Resource("", "v1", "services", "Service", ("svc",), has_status=True)
SLICES = Resource("discovery.k8s.io", "v1", "endpointslices", "EndpointSlice")
LEASES = Resource("coordination.k8s.io", "v1", "leases", "Lease", versioned_updates=True)
# What the chart renders beside these.
CHARTS = (
    Resource("", "v1", "configmaps", "ConfigMap"),
    Resource("", "v1", "persistentvolumeclaims", "PersistentVolumeClaim"),
    Resource("", "v1", "secrets", "Secret"),
    Resource("", "v1", "serviceaccounts", "ServiceAccount"),
    Resource("apps", "v1", "deployments", "Deployment"),
    Resource("networking.k8s.io", "v1", "networkpolicies", "NetworkPolicy"),
    Resource("policy", "v1", "poddisruptionbudgets", "PodDisruptionBudget"),
    Resource("rbac.authorization.k8s.io", "v1", "roles", "Role"),
    Resource("rbac.authorization.k8s.io", "v1", "rolebindings", "RoleBinding"),
)
RESOURCES = (NAMESPACES, PODS, SERVICES, SLICES, LEASES, *CHARTS)


def resource_of(group: str, version: str, plural: str) -> Resource:
    """The one that a path names. Raises `ApiError`."""
    for each in RESOURCES:
        if (each.group, each.version, each.plural) == (group, version, plural):
            return each
    raise ApiError(404, "NotFound", "the server could not find the requested resource")
