"""What the API server refuses: bodies that their schema does not allow, and names, labels and annotations."""

from __future__ import annotations

import re

import kubernetes_validate

from tests.kubernetes.resources import PODS, ApiError, Object, Resource

VERSION = "1.37"
DELETION_COST = "controller.kubernetes.io/pod-deletion-cost"
_NAME = re.compile(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?")
_LABEL = re.compile(r"([A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?)?")
_KEY = re.compile(r"([a-z0-9.-]{1,253}/)?[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?")


def check(resource: Resource, each: Object) -> None:
    """Raises `ApiError` for an object that the API server would not keep."""
    metadata = each["metadata"]
    if not _NAME.fullmatch(metadata["name"]):
        raise invalid(resource, each, f"metadata.name: Invalid value: {metadata['name']!r}")
    try:
        kubernetes_validate.validate(each, VERSION, strict=True)
    except kubernetes_validate.ValidationError as error:
        where = ".".join(map(str, error.path))
        raise invalid(resource, each, f"{where}: {error.message}") from error
    for key, value in (metadata.get("labels") or {}).items():
        if not _KEY.fullmatch(key) or not _LABEL.fullmatch(value):
            raise invalid(resource, each, f"metadata.labels: Invalid value: {key}={value}")
    for key in metadata.get("annotations") or {}:
        if not _KEY.fullmatch(key):
            raise invalid(resource, each, f"metadata.annotations: Invalid value: {key}")
    if resource is PODS:
        cost = (metadata.get("annotations") or {}).get(DELETION_COST, "0")
        if not re.fullmatch(r"0|-?[1-9][0-9]{0,9}", cost) or not -(2**31) <= int(cost) < 2**31:
            raise invalid(resource, each, f"metadata.annotations[{DELETION_COST}]: must be a 32bit integer")


def invalid(resource: Resource, each: Object, why: str) -> ApiError:
    """The answer to a body that is not taken."""
    return ApiError(422, "Invalid", f"{resource.kind} {each['metadata'].get('name')!r} is invalid: {why}")
