"""From pydantic's errors to OpenAI's codes and plain sentences."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import ValidationError

from gateway.errors import UNKNOWN_FIELD, RequestError, invalid

# Prefixes of the names, and names, that pydantic gives to union branches in an error's location.
_BRANCHES = ("item-", "function-", "list[", "dict[", "[key]", "constrained-")
_TYPES = {"int", "str"}
_EXPECTED = {
    "string_type": "a string",
    "int_type": "an integer",
    "int_from_float": "an integer",
    "float_type": "a number",
    "bool_type": "a boolean",
    "list_type": "an array",
    "model_type": "an object",
    "dict_type": "an object",
    "model_attributes_type": "an object",
}
_GOT = {
    bool: "a boolean",
    int: "an integer",
    float: "a decimal",
    str: "a string",
    list: "an array",
    dict: "an object",
}
_LENGTHS = {
    "too_short": ("empty_array", "at least {min_length} items"),
    "too_long": ("array_above_max_length", "at most {max_length} items"),
    "string_too_short": ("empty_string", "at least {min_length} characters"),
    "string_too_long": ("string_above_max_length", "at most {max_length} characters"),
}
_BOUNDS = {
    "greater_than_equal": ("below_min", "at least {ge}"),
    "greater_than": ("below_min", "more than {gt}"),
    "less_than_equal": ("above_max", "at most {le}"),
    "less_than": ("above_max", "less than {lt}"),
}


def first_problem(error: ValidationError) -> RequestError:
    """The error of the first invalid field."""
    problems = error.errors(include_url=False)
    # Each branch of a union reports an error; the one that got furthest was meant.
    same = [each for each in problems if each["loc"][:1] == problems[0]["loc"][:1]]
    problem = max(same, key=lambda each: (len(_place(each["loc"])), not each["type"].endswith("_type")))
    param = place(_place(problem["loc"]))
    kind, why, context = problem["type"], problem["msg"], problem.get("ctx", {})
    if kind == "missing":
        return RequestError(
            invalid("missing_required_parameter"), f"missing required parameter: {param}", param
        )
    if kind == "extra_forbidden":
        return RequestError(UNKNOWN_FIELD, f"unrecognized request argument: {param}", param)
    if kind in _EXPECTED:
        here = _place(problem["loc"])
        forms = [
            _EXPECTED[each["type"]]
            for each in same
            if _place(each["loc"]) == here and each["type"] in _EXPECTED
        ]
        expected = " or ".join(dict.fromkeys(forms))
        return RequestError(
            invalid("invalid_type"), f"{param} must be {expected}, not {_got(problem['input'])}", param
        )
    if kind == "literal_error":
        return RequestError(invalid("invalid_value"), f"{param} must be {context['expected']}", param)
    if kind in _LENGTHS:
        code, bound = _LENGTHS[kind]
        return RequestError(invalid(code), f"{param} must have {bound.format(**context)}", param)
    if kind in _BOUNDS:
        side, bound = _BOUNDS[kind]
        limits = {
            name: f"{limit:g}" if isinstance(limit, float) else limit for name, limit in context.items()
        }
        number = "integer" if isinstance(problem["input"], int) else "decimal"
        return RequestError(
            invalid(f"{number}_{side}_value"), f"{param} must be {bound.format(**limits)}", param
        )
    return RequestError(invalid("invalid_value"), f"{param or 'the body'}: {why}", param)


def unknown_places(error: ValidationError) -> list[list[int | str]]:
    """Where the fields are that nobody knows; empty if anything else is wrong, too."""
    problems = error.errors(include_url=False)
    unknown = [_place(problem["loc"]) for problem in problems if problem["type"] == "extra_forbidden"]
    for problem in problems:
        here = _place(problem["loc"])
        # Of a union's branches each reports its own: one may have got to the unknown field.
        another_branch = problem["type"] in _EXPECTED and any(each[: len(here)] == here for each in unknown)
        if problem["type"] != "extra_forbidden" and not another_branch:
            return []
    return unknown


def place(parts: Sequence[int | str]) -> str | None:
    """A field's name as OpenAI writes it: `messages[1].content`."""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in parts)
    return text.removeprefix(".") or None


def _place(loc: tuple[int | str, ...]) -> list[int | str]:
    return [
        part
        for index, part in enumerate(loc)
        if index == 0 or isinstance(part, int) or not (part in _TYPES or part.startswith(_BRANCHES))
    ]


def _got(value: Any) -> str:
    return _GOT.get(type(value), "null")
