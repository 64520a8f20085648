"""What is refused of a constraint before anything is compiled."""

from __future__ import annotations

import json

import pytest

from paceline.constraints.constraint import MAX_BYTES, MAX_CHOICES, Constraint, ConstraintError, Kind


@pytest.mark.parametrize(
    "constraint",
    [
        Constraint(Kind.JSON_OBJECT),
        Constraint.schema({"type": "object"}),
        Constraint.schema('{"$defs": {"a": {}}, "$ref": "#/$defs/a"}'),
        Constraint.choice(["yes", "no"]),
        Constraint(Kind.REGEX, "a+"),
        Constraint(Kind.GRAMMAR, 'start: "a"'),
    ],
)
def test_what_is_within_bounds_passes(constraint: Constraint) -> None:
    constraint.check()


@pytest.mark.parametrize(
    ("constraint", "why"),
    [
        (Constraint(Kind.JSON_OBJECT, "{}"), "has 2 bytes, at most 0"),
        (Constraint(Kind.JSON_SCHEMA, "{"), "is not JSON"),
        (Constraint(Kind.JSON_SCHEMA, "true"), "must be a JSON object"),
        (Constraint.schema('{"items":' * 5000 + "{}" + "}" * 5000), "more than 64 levels"),
        (Constraint.schema('{"items":' * 65 + "{}" + "}" * 65), "more than 64 levels"),
        (Constraint.schema({"$ref": "http://127.0.0.1/x.json"}), "leads out of the schema"),
        (Constraint.schema({"items": [{"multipleOf": 99999989}]}), "multipleOf is at most 10000"),
        (Constraint(Kind.CHOICE, '{"a": 1}'), "must be a list of strings"),
        (Constraint(Kind.CHOICE, "[1]"), "must be a list of strings"),
        (Constraint.choice([]), "must have 1 to"),
        (Constraint.choice(["a"] * (MAX_CHOICES + 1)), "must have 1 to"),
        (Constraint.choice(["a", ""]), "no empty string"),
        (Constraint(Kind.REGEX, " "), "is empty"),
        (Constraint(Kind.REGEX, "\ud800"), "surrogate"),
        *((Constraint(kind, "x" * (most + 1)), "at most") for kind, most in MAX_BYTES.items()),
    ],
)
def test_what_is_not_is_refused_with_the_reason(constraint: Constraint, why: str) -> None:
    with pytest.raises(ConstraintError, match=why):
        constraint.check()


def test_choices_are_kept_as_they_are() -> None:
    assert json.loads(Constraint.choice(['"\n', "é"]).text) == ['"\n', "é"]
