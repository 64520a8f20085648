"""The document at /openapi.json says of itself what it means, and of requests what they may hold."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import pytest

from gateway.core import Gateway
from gateway.http.app import build_app


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    # The document depends on the routes alone.
    unused = cast("Any", None)
    gateway = Gateway(
        unused,
        unused,
        None,
        unused,
        model_name="tiny",
        max_body_bytes=1,
        request_seconds=1,
        client_stall_seconds=1,
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


def test_every_route_says_what_it_answers_with(document: dict[str, Any]) -> None:
    answers = {}
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            content = operation["responses"]["200"]["content"]
            assert content, (method, path)
            for described in content.values():
                schema = described["schema"]
                assert schema.get("$ref") or schema["contentSchema"], (method, path)
            answers[method, path] = set(content)
    whole, streamed = "application/json", "text/event-stream"
    assert answers["post", "/v1/chat/completions"] == answers["post", "/v1/completions"] == {whole, streamed}
    assert answers["get", "/v1/sessions/{session_id}/events"] == {streamed}
    assert answers["get", "/readyz"] == {whole}


def test_keys_are_described_where_they_are_asked_for(document: dict[str, Any]) -> None:
    [(name, scheme)] = document["components"]["securitySchemes"].items()
    assert (scheme["type"], scheme["scheme"]) == ("http", "bearer")
    for path, operations in document["paths"].items():
        for operation in operations.values():
            needed = [] if path in ("/health", "/healthz", "/readyz") else [[name], []]
            assert [list(each) for each in operation.get("security", [])] == needed, path
