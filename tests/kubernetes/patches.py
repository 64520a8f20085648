"""Patches, by their content type."""

from __future__ import annotations

import copy
from typing import Any

from tests.kubernetes.resources import ApiError, Object

MERGE = "application/merge-patch+json"
JSON = "application/json-patch+json"
STRATEGIC = "application/strategic-merge-patch+json"
# Lists whose items a strategic patch merges by a key. This server does not: it says so.
_MERGED_LISTS = {
    "containers",
    "initContainers",
    "volumes",
    "env",
    "finalizers",
    "ownerReferences",
    "tolerations",
}


def patched(old: Object, patch: Any, content_type: str) -> Object:
    """A patched copy. Raises `ApiError`."""
    if content_type == JSON:
        if isinstance(patch, dict):
            raise ApiError(400, "BadRequest", "json: cannot unmarshal object into a JSON patch")
        raise ApiError(501, "NotImplemented", "this server takes no JSON patches")
    if content_type not in (MERGE, STRATEGIC):
        raise ApiError(
            415,
            "UnsupportedMediaType",
            f"the body was in an unknown format - accepted media types include: {MERGE}, {STRATEGIC}",
        )
    if not isinstance(patch, dict):
        raise ApiError(400, "BadRequest", "a patch must be an object")
    new = copy.deepcopy(old)
    _merge(new, patch, strategic=content_type == STRATEGIC)
    return new


def _merge(into: Object, patch: Object, *, strategic: bool) -> None:
    for key, value in patch.items():
        if value is None:
            into.pop(key, None)
        elif isinstance(value, dict):
            if not isinstance(into.get(key), dict):
                into[key] = {}
            _merge(into[key], value, strategic=strategic)
        elif strategic and (key in _MERGED_LISTS or key.startswith("$")):
            raise ApiError(501, "NotImplemented", f"this server merges no lists: {key}")
        else:
            into[key] = value
