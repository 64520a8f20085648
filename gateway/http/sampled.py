"""Sampling parameters as fields of HTTP bodies, made from the table of parameters."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from gateway.http.strict import Integral, integral
from paceline.sampling import Bound, Parameter, SamplingRequest, parameters_of
from paceline.sampling.kinds import Biases, Ids, Integer, Number, Texts

# JSON's integers have no width of their own.
_LARGEST_COUNT = 2**31

TokenId = Annotated[int, Field(ge=0, lt=2**32)]

# Values that mean "not given", as on other servers.
_NOT_GIVEN: dict[str, Any] = {"top_k": -1, "seed": -1, "stop": ""}


def fields() -> dict[str, Any]:
    """Every parameter's field: its type, and None where it is not given."""
    return {each.name: (_form(each), None) for each in parameters_of(SamplingRequest)}


def given(values: Any) -> dict[str, Any]:
    """What a body with these fields gives, as arguments of a `SamplingRequest`."""
    return {
        each.name: each.kind.read(_plain(value))
        for each in parameters_of(SamplingRequest)
        if (value := getattr(values, each.name)) is not None
    }


def _plain(value: Any) -> Any:
    """A value of a body as the table's kinds read it."""
    if isinstance(value, str):
        return (value,)
    return [(int(token), number) for token, number in value.items()] if isinstance(value, dict) else value


def _form(parameter: Parameter) -> Any:
    form: Any = _type(parameter) | None
    form = Annotated[form, Field(description=parameter.meaning)]
    if parameter.name in _NOT_GIVEN:
        return Annotated[form, _unless(_NOT_GIVEN[parameter.name])]
    return Annotated[form, Integral] if isinstance(parameter.kind, Integer) else form


def _type(parameter: Parameter) -> Any:
    match parameter.kind:
        case Number(bound):
            return Annotated[float, Field(allow_inf_nan=False), _within(bound)]
        case Integer(bound):
            return Annotated[int, _within(bound)]
        case Ids(most):
            return Annotated[list[TokenId], Field(max_length=most)]
        case Biases(most, bound):
            token = Annotated[str, Field(pattern=r"^[0-9]{1,10}$")]
            return Annotated[dict[token, Annotated[float, _within(bound)]], Field(max_length=most)]
        case Texts(most, characters):
            text = Annotated[str, Field(min_length=1, max_length=characters)]
            return text | Annotated[list[text], Field(max_length=most)]
    return bool


def _within(bound: Bound) -> Any:
    high = _LARGEST_COUNT if bound.high is None else bound.high
    return Field(gt=bound.low, le=high) if bound.low_excluded else Field(ge=bound.low, le=high)


def _unless(neutral: Any) -> BeforeValidator:
    """Takes this value as "not given"."""

    def unless(value: Any) -> Any:
        value = integral(value)
        return None if value == neutral and type(value) is type(neutral) else value

    return BeforeValidator(unless)
