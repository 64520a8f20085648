"""The fields of bodies that say what a text must be."""

from __future__ import annotations

import json
from typing import Any

import pytest

from gateway.errors import RequestError
from gateway.http.schema import ChatRequest, CompletionRequest, parse
from paceline.constraints.constraint import Constraint, Kind

SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}


def chat(**fields: Any) -> ChatRequest:
    body = {"model": "m", "messages": [{"role": "user", "content": "hi"}], **fields}
    return parse(json.dumps(body).encode(), ChatRequest)


def text(**fields: Any) -> CompletionRequest:
    return parse(json.dumps({"model": "m", "prompt": "hi", **fields}).encode(), CompletionRequest)


def named(**fields: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMA, **fields}}


@pytest.mark.parametrize("ask", [chat, text])
@pytest.mark.parametrize(
    ("fields", "constraint", "field"),
    [
        ({"response_format": {"type": "json_object"}}, Constraint(Kind.JSON_OBJECT), "response_format"),
        (
            {"response_format": named(strict=True)},
            Constraint.schema(SCHEMA),
            "response_format.json_schema.schema",
        ),
        (
            {"response_format": named()},
            Constraint.schema(SCHEMA, lenient=True),
            "response_format.json_schema.schema",
        ),
        (
            {"response_format": {"type": "json_object", "schema": SCHEMA}},
            Constraint.schema(SCHEMA),
            "response_format.schema",
        ),
        ({"structured_outputs": {"json": SCHEMA}}, Constraint.schema(SCHEMA), "structured_outputs.json"),
        (
            {"structured_outputs": {"json": json.dumps(SCHEMA)}},
            Constraint.schema(SCHEMA),
            "structured_outputs.json",
        ),
        (
            {"structured_outputs": {"regex": "a+", "choice": None}},
            Constraint(Kind.REGEX, "a+"),
            "structured_outputs.regex",
        ),
        (
            {"structured_outputs": {"choice": ["a", "b"]}},
            Constraint.choice(["a", "b"]),
            "structured_outputs.choice",
        ),
        (
            {"structured_outputs": {"json_object": True}},
            Constraint(Kind.JSON_OBJECT),
            "structured_outputs.json_object",
        ),
        ({"guided_json": SCHEMA}, Constraint.schema(SCHEMA), "guided_json"),
        ({"guided_regex": "a"}, Constraint(Kind.REGEX, "a"), "guided_regex"),
        ({"guided_choice": ["a"]}, Constraint.choice(["a"]), "guided_choice"),
        ({"guided_grammar": "start: x"}, Constraint(Kind.GRAMMAR, "start: x"), "guided_grammar"),
        ({"grammar": "root ::= x"}, Constraint(Kind.GRAMMAR, "root ::= x"), "grammar"),
        ({"json_schema": SCHEMA}, Constraint.schema(SCHEMA), "json_schema"),
    ],
)
def test_each_name_means_the_same_constraint(
    ask: Any, fields: dict[str, Any], constraint: Constraint, field: str
) -> None:
    asked = ask(**fields)
    assert asked.constraint == constraint
    assert asked.constraint_field == field
    assert asked.sampling(None).constraint == constraint


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"response_format": None},
        {"response_format": {"type": "text"}},
        {"structured_outputs": {}},
        {"structured_outputs": {"json_object": False, "disable_any_whitespace": False}},
        {"grammar": "", "guided_choice": [], "guided_json": None},
    ],
)
def test_what_asks_for_nothing_leaves_the_text_free(fields: dict[str, Any]) -> None:
    assert chat(**fields).sampling(None).constraint is None


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema.schema"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "n"}}},
            "response_format.json_schema.schema",
        ),
        ({"response_format": named(schema="x")}, "response_format.json_schema.schema"),
        ({"response_format": named(more=1)}, "response_format.json_schema.more"),
        ({"structured_outputs": {"json": "{"}}, "structured_outputs.json"),
        ({"structured_outputs": {"regex": 1}}, "structured_outputs.regex"),
        ({"structured_outputs": {"structural_tag": "x"}}, "structured_outputs.structural_tag"),
        ({"structured_outputs": {"choice": ["a", ""]}}, "structured_outputs.choice"),
        ({"guided_choice": ["a", 1]}, "guided_choice[1]"),
        ({"guided_regex": "a", "guided_choice": ["a"]}, "guided_choice"),
        ({"response_format": {"type": "json_object"}, "guided_regex": "a"}, "guided_regex"),
        ({"guided_json": {"items": {"$ref": "http://x/y"}}}, "guided_json"),
    ],
)
def test_what_is_wrong_is_named(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(RequestError) as caught:
        chat(**fields)
    assert caught.value.kind.status == 400
    assert caught.value.param == param
