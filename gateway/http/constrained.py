"""The fields of bodies that say what a text must be: OpenAI's, vLLM's, SGLang's and llama.cpp's."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal, Self

from pydantic import Field, PrivateAttr, model_validator

from gateway.errors import RequestError, invalid
from gateway.http.strict import Strict
from gateway.trials import refused
from paceline.constraints.constraint import Constraint, ConstraintError, Kind

# A schema as values of JSON, or as their text.
Schema = dict[str, Any] | str
Choices = list[str]


class JsonSchema(Strict):
    """OpenAI's: a schema with a name."""

    name: Annotated[str, Field(max_length=64)] | None = None
    description: str | None = None
    # What cannot be enforced of it is refused where it is strict, and left out else.
    strict: bool | None = None
    schema_: Annotated[dict[str, Any] | None, Field(alias="schema")] = None


class ResponseFormat(Strict):
    """OpenAI's `response_format`, and llama.cpp's, where the schema has no name."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None
    schema_: Annotated[dict[str, Any] | None, Field(alias="schema")] = None


class StructuredOutputs(Strict):
    """vLLM's `structured_outputs`: one of the first five."""

    json_: Annotated[Schema | None, Field(alias="json")] = None
    regex: str | None = None
    choice: Choices | None = None
    grammar: str | None = None
    json_object: bool | None = None
    # How that is done is ours.
    disable_fallback: bool | None = None
    disable_any_whitespace: Literal[False] | None = None
    disable_additional_properties: Literal[False] | None = None


class Constrained(Strict):
    """Which of them a request gives: at most one."""

    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    # vLLM's older names.
    guided_json: Schema | None = None
    guided_regex: str | None = None
    guided_choice: Choices | None = None
    guided_grammar: str | None = None
    # SGLang's and llama.cpp's.
    json_schema: Schema | None = None
    grammar: str | None = None
    regex: str | None = None
    ebnf: str | None = None

    _asked: tuple[str, Constraint] | None = PrivateAttr(None)

    @model_validator(mode="after")
    def _one(self) -> Self:
        asked = [(field, constraint) for field, constraint in self._all() if constraint is not None]
        if len(asked) > 1:
            (first, _), (second, _) = asked[:2]
            raise RequestError(
                invalid("invalid_value"), f"{second} cannot be combined with {first}: give one", second
            )
        for field, constraint in asked:
            try:
                constraint.check()
            except ConstraintError as error:
                raise refused(field, error) from None
            self._asked = field, constraint
        return self

    @property
    def constraint(self) -> Constraint | None:
        """What the text must be."""
        return None if self._asked is None else self._asked[1]

    @property
    def constraint_field(self) -> str:
        """The field that says so."""
        return "" if self._asked is None else self._asked[0]

    def _all(self) -> Iterator[tuple[str, Constraint | None]]:
        if self.response_format is not None:
            yield _of_format(self.response_format)
        given = self.structured_outputs
        if given is not None:
            yield "structured_outputs.json", _schema(given.json_)
            yield "structured_outputs.regex", _text(Kind.REGEX, given.regex)
            yield "structured_outputs.choice", _choice(given.choice)
            yield "structured_outputs.grammar", _text(Kind.GRAMMAR, given.grammar)
            if given.json_object:
                yield "structured_outputs.json_object", Constraint(Kind.JSON_OBJECT)
        yield "guided_json", _schema(self.guided_json)
        yield "guided_regex", _text(Kind.REGEX, self.guided_regex)
        yield "guided_choice", _choice(self.guided_choice)
        yield "guided_grammar", _text(Kind.GRAMMAR, self.guided_grammar)
        yield "json_schema", _schema(self.json_schema)
        yield "grammar", _text(Kind.GRAMMAR, self.grammar)
        yield "regex", _text(Kind.REGEX, self.regex)
        yield "ebnf", _text(Kind.GRAMMAR, self.ebnf)


def _of_format(given: ResponseFormat) -> tuple[str, Constraint | None]:
    if given.type == "text":
        return "response_format", None
    named = given.json_schema
    if given.type == "json_object":
        if given.schema_ is not None:
            return "response_format.schema", Constraint.schema(given.schema_)
        return "response_format", Constraint(Kind.JSON_OBJECT)
    if named is not None and named.schema_ is not None:
        schema = Constraint.schema(named.schema_, lenient=not named.strict)
        return "response_format.json_schema.schema", schema
    if given.schema_ is not None:
        return "response_format.schema", Constraint.schema(given.schema_)
    field = "response_format.json_schema.schema"
    raise RequestError(invalid("missing_required_parameter"), f"missing required parameter: {field}", field)


def _schema(given: Schema | None) -> Constraint | None:
    return Constraint.schema(given) if given else None


def _text(kind: Kind, given: str | None) -> Constraint | None:
    return Constraint(kind, given) if given else None


def _choice(given: Choices | None) -> Constraint | None:
    return Constraint.choice(given) if given else None
