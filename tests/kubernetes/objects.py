"""The objects that the API server of the tests keeps, each change with a version, as etcd does."""

from __future__ import annotations

import base64
import copy
import json
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass

from tests.kubernetes.resources import NAMESPACES, PODS, ApiError, Object, Resource
from tests.kubernetes.selectors import Test
from tests.kubernetes.validation import check, invalid

Key = tuple[Resource, str, str]


@dataclass(frozen=True, slots=True)
class Change:
    """One object at two times; None where it was not there."""

    version: int
    key: Key
    before: Object | None
    after: Object | None

    def event(self, resource: Resource, namespace: str, takes: Test) -> Object | None:
        """What a watch with that selector is told of it."""
        if self.key[0] is not resource or (namespace and self.key[1] != namespace):
            return None
        before = self.before is not None and takes(self.before)
        after = self.after is not None and takes(self.after)
        if after:
            return {"type": "MODIFIED" if before else "ADDED", "object": self.after}
        if not before:
            return None
        assert self.before is not None
        metadata = {**self.before["metadata"], "resourceVersion": str(self.version)}
        return {"type": "DELETED", "object": {**self.before, "metadata": metadata}}


class Objects:
    """Hold `changed` to look at what belongs together; it is notified of every change."""

    def __init__(self) -> None:
        self.changed = threading.Condition(threading.RLock())
        self.version = 100
        # Changes after this version are known; older ones have been compacted away.
        self.compacted = 100
        self._objects: dict[Key, Object] = {}
        self._changes: list[Change] = []
        self.create(NAMESPACES, "", {"metadata": {"name": "default"}})

    def compact(self) -> None:
        """Forget what was before now."""
        with self.changed:
            self.compacted, self._changes = self.version, []

    def after(self, version: int) -> list[Change]:
        """Changes after a version. Raises `ApiError` if some of them are forgotten."""
        if version < self.compacted:
            raise ApiError(410, "Expired", f"too old resource version: {version} ({self.compacted})")
        return [change for change in self._changes if change.version > version]

    def get(self, resource: Resource, namespace: str, name: str) -> Object:
        """A copy. Raises `ApiError`."""
        with self.changed:
            found = self._objects.get((resource, namespace, name))
            if found is None:
                raise ApiError(404, "NotFound", f'{resource.plural} "{name}" not found')
            return copy.deepcopy(found)

    def find(
        self, resource: Resource, namespace: str, takes: Test, limit: int = 0, token: str = ""
    ) -> tuple[list[Object], int, str]:
        """Objects of one moment in order of their names, its version, and the token for those that follow."""
        with self.changed:
            version, start = self.version, ("", "")
            if token:
                told = json.loads(base64.b64decode(token))
                version, start = told["version"], tuple(told["start"])
            try:
                later = self.after(version)
            except ApiError as error:
                raise ApiError(410, "Expired", "The provided continue parameter is too old") from error
            then = dict(self._objects)
            for change in reversed(later):
                then.pop(change.key, None)
                if change.before is not None:
                    then[change.key] = change.before
            found = [
                (key[1:], each)
                for key, each in sorted(then.items(), key=lambda item: item[0][1:])
                if key[0] is resource and (not namespace or key[1] == namespace) and key[1:] > start
            ]
            found = [(place, each) for place, each in found if takes(each)]
            more = ""
            if limit and len(found) > limit:
                found = found[:limit]
                more = base64.b64encode(
                    json.dumps({"version": version, "start": found[-1][0]}).encode()
                ).decode()
            return [copy.deepcopy(each) for _, each in found], version, more

    def create(self, resource: Resource, namespace: str, body: Object) -> Object:
        """Raises `ApiError`."""
        made = {"apiVersion": resource.group_version, "kind": resource.kind, **copy.deepcopy(body)}
        metadata = made.setdefault("metadata", {})
        if not metadata.get("name") and metadata.get("generateName"):
            metadata["name"] = metadata["generateName"] + uuid.uuid4().hex[:5]
        if not metadata.get("name"):
            raise invalid(resource, made, "metadata.name: Required value: name or generateName is required")
        if resource.namespaced:
            if metadata.setdefault("namespace", namespace) != namespace:
                raise ApiError(400, "BadRequest", "the namespace of the object does not match the request's")
            self.get(NAMESPACES, "", namespace)
        with self.changed:
            if (resource, namespace, metadata["name"]) in self._objects:
                raise ApiError(409, "AlreadyExists", f'{resource.plural} "{metadata["name"]}" already exists')
            metadata |= {"uid": str(uuid.uuid4()), "creationTimestamp": _now(), "generation": 1}
            if resource is PODS:
                made.setdefault("status", {"phase": "Pending"})
            return self._keep((resource, namespace, metadata["name"]), None, made)

    def update(
        self,
        resource: Resource,
        namespace: str,
        name: str,
        change: Callable[[Object], Object],
        *,
        status: bool = False,
    ) -> Object:
        """Replace an object by what `change` makes of it. One that stays the same gets no new version.

        `status`: only what it says of the status counts; otherwise that does not count.
        """
        with self.changed:
            old = self.get(resource, namespace, name)
            new = change(copy.deepcopy(old))
            wanted, known = new.setdefault("metadata", {}), old["metadata"]
            if wanted.get("name", name) != name:
                raise ApiError(400, "BadRequest", "the name of the object does not match the request's")
            if not wanted.get("resourceVersion") and resource.versioned_updates:
                raise invalid(resource, old, "metadata.resourceVersion: must be specified for an update")
            stale = wanted.get("resourceVersion") not in (None, "", known["resourceVersion"])
            if stale or wanted.get("uid", known["uid"]) != known["uid"]:
                raise ApiError(
                    409,
                    "Conflict",
                    f'Operation cannot be fulfilled on {resource.plural} "{name}": the object has been '
                    "modified; please apply your changes to the latest version and try again",
                )
            new = {"apiVersion": resource.group_version, "kind": resource.kind, **new}
            kept = {"name", "namespace", "uid", "creationTimestamp", "generation", "resourceVersion"}
            kept |= {"deletionTimestamp", "deletionGracePeriodSeconds"}
            new["metadata"] = {**wanted, **{key: known[key] for key in kept if key in known}}
            if resource.has_status:
                new = {**(old if status else new), "status": (new if status else old).get("status", {})}
            if new == old:
                return old
            if new.get("spec") != old.get("spec"):
                new["metadata"]["generation"] = known["generation"] + 1
            return self._keep((resource, namespace, name), old, new)

    def delete(self, resource: Resource, namespace: str, name: str, grace_seconds: int | None) -> Object:
        """A pod goes when its kubelet says so, by a grace of 0; until then it has a time of deletion."""
        with self.changed:
            old = self.get(resource, namespace, name)
            if resource is PODS and grace_seconds != 0:
                if "deletionTimestamp" in old["metadata"]:
                    return old
                new = copy.deepcopy(old)
                grace = 30 if grace_seconds is None else grace_seconds
                new["metadata"] |= {"deletionTimestamp": _now(), "deletionGracePeriodSeconds": grace}
                return self._keep((resource, namespace, name), old, new)
            del self._objects[resource, namespace, name]
            self._note((resource, namespace, name), old, None)
            return old

    def _keep(self, key: Key, old: Object | None, new: Object) -> Object:
        check(key[0], new)
        new["metadata"]["resourceVersion"] = str(self.version + 1)
        self._objects[key] = new
        self._note(key, old, copy.deepcopy(new))
        return copy.deepcopy(new)

    def _note(self, key: Key, before: Object | None, after: Object | None) -> None:
        self.version += 1
        self._changes.append(Change(self.version, key, before, after))
        self.changed.notify_all()


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
