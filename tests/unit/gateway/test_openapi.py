"""The document at /openapi.json says of itself what it means, and of requests what they may hold."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import pytest

from gateway.api import Gateway, build_app


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    # The document depends on the routes alone.
    unused = cast("Any", None)
    gateway = Gateway(
        unused, unused, None, model_name="tiny", max_body_bytes=1, request_seconds=1, client_stall_seconds=1
    )
    return build_app(gateway).openapi()


def references(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        if isinstance(value.get("$ref"), str):
            yield value["$ref"]
        value = list(value.values())
    if isinstance(value, list):
        for each in value:
            yield from references(each)


def test_every_reference_leads_somewhere(document: dict[str, Any]) -> None:
    found = set(references(document))
    assert "#/components/schemas/Message" in found
    for reference in found:
        place: Any = document
        for step in reference.removeprefix("#/").split("/"):
            place = place[step]


def test_a_refusal_is_described_as_it_is_written(document: dict[str, Any]) -> None:
    for operations in document["paths"].values():
        for operation in operations.values():
            assert "422" not in operation["responses"]
            assert "default" in operation["responses"]
