"""What a text must be, as a client says it. It is checked here as far as that needs no compiler."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from pydantic_core import from_json


class Kind(StrEnum):
    """How a constraint's text is meant."""

    # Any JSON object; the text is empty.
    JSON_OBJECT = "json_object"
    # JSON that a JSON Schema (the text) describes.
    JSON_SCHEMA = "json_schema"
    # What a regular expression matches from its first to its last character.
    REGEX = "regex"
    # One of some strings; the text is a JSON list of them.
    CHOICE = "choice"
    # A context-free grammar in Lark's syntax or in llama.cpp's GBNF, from its rule `start` or `root`.
    GRAMMAR = "grammar"


# Most bytes of a constraint's text, in UTF-8.
MAX_BYTES: Final[Mapping[Kind, int]] = {
    Kind.JSON_OBJECT: 0,
    Kind.JSON_SCHEMA: 64 << 10,
    Kind.REGEX: 8 << 10,
    Kind.CHOICE: 64 << 10,
    Kind.GRAMMAR: 64 << 10,
}
MAX_CHOICES: Final = 1024
# Most levels of lists and objects in a schema.
MAX_DEPTH: Final = 64
# Beyond it the numbers that are multiples of another take more states than fit.
MAX_MULTIPLE: Final = 10_000


class ConstraintError(ValueError):
    """A constraint cannot be held; the text says why, and not which field it came from."""


@dataclass(frozen=True, slots=True)
class Constraint:
    """What a session's text must be."""

    kind: Kind
    text: str = ""
    # Leave out what of a JSON Schema cannot be enforced, where a constraint is refused otherwise.
    lenient: bool = False

    @classmethod
    def choice(cls, choices: Sequence[str]) -> Constraint:
        """One of these strings."""
        return cls(Kind.CHOICE, json.dumps(list(choices), ensure_ascii=False))

    @classmethod
    def schema(cls, schema: Any, *, lenient: bool = False) -> Constraint:
        """JSON that a schema describes, as text or as values of JSON."""
        text = schema if isinstance(schema, str) else json.dumps(schema, ensure_ascii=False)
        return cls(Kind.JSON_SCHEMA, text, lenient)

    def plain(self) -> dict[str, str | bool]:
        """As JSON holds it."""
        return {"kind": str(self.kind), "text": self.text, "lenient": self.lenient}

    @classmethod
    def read(cls, plain: Mapping[str, Any]) -> Constraint:
        """What `plain` made; raises `KeyError`, `TypeError` or `ValueError` for something else."""
        return cls(Kind(plain["kind"]), plain["text"], plain["lenient"])

    def check(self) -> None:
        """Raises `ConstraintError` for what breaks a bound or is not of its kind. A trial tells more."""
        try:
            size = len(self.text.encode())
        except UnicodeEncodeError:
            raise ConstraintError("half a surrogate pair is no text") from None
        if size > MAX_BYTES[self.kind]:
            raise ConstraintError(f"has {size} bytes, at most {MAX_BYTES[self.kind]} are taken")
        if self.kind is Kind.CHOICE:
            _check_choices(_json(self.text))
        elif self.kind is Kind.JSON_SCHEMA:
            _check_schema(_json(self.text))
        elif self.kind is not Kind.JSON_OBJECT and not self.text.strip():
            raise ConstraintError("is empty")


def _json(text: str) -> Any:
    try:
        # Unlike the standard library's it stops at some hundred levels by itself.
        return from_json(text)
    except ValueError as error:
        if "recursion" in str(error):
            raise ConstraintError(f"has more than {MAX_DEPTH} levels") from None
        raise ConstraintError(f"is not JSON: {error}") from None


def _check_choices(choices: Any) -> None:
    if not isinstance(choices, list) or not all(isinstance(each, str) for each in choices):
        raise ConstraintError("must be a list of strings")
    if not 1 <= len(choices) <= MAX_CHOICES:
        raise ConstraintError(f"must have 1 to {MAX_CHOICES} strings, got {len(choices)}")
    if not all(choices):
        raise ConstraintError("must have no empty string")


def _check_schema(schema: Any) -> None:
    if not isinstance(schema, dict):
        raise ConstraintError("must be a JSON object")
    level: list[Any] = [schema]
    depth = 0
    while level:
        depth += 1
        if depth > MAX_DEPTH:
            raise ConstraintError(f"has more than {MAX_DEPTH} levels")
        below: list[Any] = []
        for value in level:
            if isinstance(value, dict):
                _check_keywords(value)
                below += value.values()
            elif isinstance(value, list):
                below += value
        level = [value for value in below if isinstance(value, dict | list)]


def _check_keywords(schema: Mapping[str, Any]) -> None:
    target = schema.get("$ref")
    if isinstance(target, str) and not target.startswith("#"):
        raise ConstraintError(f"$ref {target[:80]!r} leads out of the schema")
    multiple = schema.get("multipleOf")
    if isinstance(multiple, int | float) and multiple > MAX_MULTIPLE:
        raise ConstraintError(f"multipleOf is at most {MAX_MULTIPLE}, got {multiple:g}")
