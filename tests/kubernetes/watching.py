"""A watch: what it tells, from its first event to its end."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping

from tests.kubernetes.objects import Objects
from tests.kubernetes.requests import Request
from tests.kubernetes.resources import Object
from tests.kubernetes.selectors import Test


class Watch:
    """One watch, from its first event to its end."""

    def __init__(self, objects: Objects, request: Request, takes: Test, bookmark_seconds: float) -> None:
        self._objects = objects
        self._bookmark_seconds = bookmark_seconds
        self._request = request
        self._takes = takes
        self._end = time.monotonic() + float(request.query.get("timeoutSeconds") or 1800)

    def events(self) -> Iterator[Object]:
        """Raises `ApiError` when what follows is not known any more."""
        objects, resource, namespace = self._objects, self._request.resource, self._request.namespace
        asked = self._request.query.get("resourceVersion") or "0"
        initial = self._request.flag("sendInitialEvents")
        version = int(asked)
        if asked == "0" or initial:
            items, version, _ = objects.find(resource, namespace, self._takes)
            yield from ({"type": "ADDED", "object": each} for each in items)
        if initial:
            yield self._bookmark(version, {"k8s.io/initial-events-end": "true"})
        bookmarks = self._request.flag("allowWatchBookmarks")
        marked = time.monotonic()
        while (now := time.monotonic()) < self._end:
            with objects.changed:
                changes = objects.after(version)
                if not changes:
                    objects.changed.wait(max(0.0, min(self._end - now, self._bookmark_seconds)))
            for change in changes:
                version = change.version
                event = change.event(resource, namespace, self._takes)
                if event is not None:
                    yield event
            if bookmarks and time.monotonic() - marked >= self._bookmark_seconds:
                marked = time.monotonic()
                yield self._bookmark(version)

    def _bookmark(self, version: int, annotations: Mapping[str, str] | None = None) -> Object:
        resource = self._request.resource
        metadata = {"resourceVersion": str(version), **({"annotations": annotations} if annotations else {})}
        marked = {"kind": resource.kind, "apiVersion": resource.group_version, "metadata": metadata}
        return {"type": "BOOKMARK", "object": marked}
