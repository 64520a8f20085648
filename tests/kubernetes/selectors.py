"""Label selectors and field selectors, as the API server reads them."""

from __future__ import annotations

import re
from collections.abc import Callable

from tests.kubernetes.resources import ApiError, Object

Test = Callable[[Object], bool]

_SET = re.compile(r"(?P<key>[^\s!=,()]+)\s+(?P<not>notin|in)\s+\((?P<values>[^()]*)\)")
_EQUAL = re.compile(r"(?P<key>[^\s!=,()]+)\s*(?P<sign>!=|==|=)\s*(?P<value>[^\s!=,()]*)")
_THERE = re.compile(r"(?P<not>!?)\s*(?P<key>[^\s!=,()]+)")


def selector(labels: str, fields: str) -> Test:
    """Whether both take an object. Raises `ApiError` for what is no selector."""
    tests = [_label_test(part) for part in _parts(labels)] + [_field_test(part) for part in _parts(fields)]
    return lambda each: all(test(each) for test in tests)


def _parts(text: str) -> list[str]:
    """Split at commas outside brackets."""
    return [part.strip() for part in re.split(r",(?![^()]*\))", text) if part.strip()]


def _label_test(part: str) -> Test:
    if match := _SET.fullmatch(part):
        key, values = match["key"], {value.strip() for value in match["values"].split(",")}
        if match["not"] == "in":
            return lambda each: _labels(each).get(key) in values
        return lambda each: _labels(each).get(key) not in values
    if match := _EQUAL.fullmatch(part):
        key, value, same = match["key"], match["value"], match["sign"] != "!="
        return lambda each: (_labels(each).get(key) == value) is same
    if match := _THERE.fullmatch(part):
        key, wanted = match["key"], not match["not"]
        return lambda each: (key in _labels(each)) is wanted
    raise ApiError(400, "BadRequest", f"unable to parse requirement: {part!r}")


def _field_test(part: str) -> Test:
    match = _EQUAL.fullmatch(part)
    if match is None or match["key"] not in ("metadata.name", "metadata.namespace", "status.phase"):
        raise ApiError(400, "BadRequest", f"field label not supported: {part!r}")
    path, value, same = match["key"].split("."), match["value"], match["sign"] != "!="

    def test(each: Object) -> bool:
        for step in path:
            each = each.get(step) or {}
        return (each == value) is same

    return test


def _labels(each: Object) -> Object:
    return each["metadata"].get("labels") or {}
