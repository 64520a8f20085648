"""What a request's path and query mean, and what the API server says that there is."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Self
from urllib.parse import parse_qs

from tests.kubernetes.resources import RESOURCES, ApiError, Object, Resource, resource_of


@dataclass(frozen=True, slots=True)
class Request:
    """What a path and its query mean."""

    resource: Resource
    namespace: str
    name: str
    status: bool
    query: dict[str, str]

    @classmethod
    def of(cls, path: str, query: str) -> Self:
        """Raises `ApiError`."""
        steps = [step for step in path.split("/") if step]
        if steps[:1] == ["api"]:
            steps.insert(1, "")
        unknown = ApiError(404, "NotFound", "the server could not find the requested resource")
        if len(steps) < 4 or steps[0] not in ("api", "apis"):
            raise unknown
        _, group, version, *rest = steps
        namespace = ""
        if rest[0] == "namespaces" and len(rest) > 2 and rest[2] != "status":
            namespace, rest = rest[1], rest[2:]
        resource = resource_of(group, version, rest[0])
        if rest[2:] not in ([], ["status"]) or (rest[2:] and not resource.has_status):
            raise unknown
        asked = {key: values[0] for key, values in parse_qs(query).items()}
        return cls(resource, namespace, rest[1] if len(rest) > 1 else "", bool(rest[2:]), asked)

    def flag(self, name: str) -> bool:
        return self.query.get(name, "") in ("1", "true")


@cache
def documents() -> dict[str, Object]:
    """By path: what a client asks first: which groups, versions and kinds there are."""
    groups = sorted({(each.group, each.version) for each in RESOURCES if each.group})
    documents: dict[str, Object] = {
        "/version": {"major": "1", "minor": "37", "gitVersion": "v1.37.0", "platform": "linux/amd64"},
        "/api": {"kind": "APIVersions", "versions": ["v1"]},
        "/apis": {
            "kind": "APIGroupList",
            "apiVersion": "v1",
            "groups": [
                {
                    "name": group,
                    "versions": [{"groupVersion": f"{group}/{version}", "version": version}],
                    "preferredVersion": {"groupVersion": f"{group}/{version}", "version": version},
                }
                for group, version in groups
            ],
        },
    }
    for group, version in [("", "v1"), *groups]:
        own = [each for each in RESOURCES if (each.group, each.version) == (group, version)]
        documents[f"/apis/{group}/{version}" if group else "/api/v1"] = {
            "kind": "APIResourceList",
            "apiVersion": "v1",
            "groupVersion": own[0].group_version,
            "resources": [each.described() for each in own],
        }
    return documents
