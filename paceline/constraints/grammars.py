"""From constraints to the grammars of llguidance, and what their matchers may take."""

from __future__ import annotations

import json
from typing import Final

from llguidance import LLMatcher, LLParserLimits
from llguidance.gbnf_to_lark import GbnfToLarkError, any_to_lark

from paceline.constraints.constraint import Constraint, ConstraintError, Kind

# Between JSON's tokens: nothing, a space, or a line's end and its indentation. Without a bound a model can
# write blanks for ever.
_WHITESPACE: Final = r"( |\r?\n[ \t]{0,64})?"
# Fuel and items are the library's units of work: about a millisecond for each 14,000 and 20,000. States take
# up to 2 kB each. With verbose errors a client's grammar would stand in logs.
LIMITS: Final = LLParserLimits(
    max_items_in_row=2_000,
    initial_lexer_fuel=1_000_000,
    step_lexer_fuel=100_000,
    step_max_items=20_000,
    max_lexer_states=50_000,
    max_grammar_size=100_000,
    verbose_errors=False,
)
# Most characters of the library's reason that a client is told.
_MAX_REASON: Final = 300


def grammar_of(constraint: Constraint) -> str:
    """The constraint in the library's own form. Raises `ConstraintError` for what cannot be read."""
    match constraint.kind:
        case Kind.JSON_OBJECT:
            return _json('{"type": "object"}', lenient=False)
        case Kind.JSON_SCHEMA:
            return _json(constraint.text, lenient=constraint.lenient)
        case Kind.REGEX:
            return LLMatcher.grammar_from_regex(constraint.text)
        case Kind.CHOICE:
            choices: list[str] = json.loads(constraint.text)
            return LLMatcher.grammar_from_lark("start: " + " | ".join(json.dumps(each) for each in choices))
        case Kind.GRAMMAR:
            return LLMatcher.grammar_from_lark(_lark(constraint.text))


def reason(told: str) -> str:
    """The library's error as a client is told it."""
    text = " ".join(told.replace("<non-verbose/>", "").split())
    return text if len(text) <= _MAX_REASON else f"{text[:_MAX_REASON]}..."


def _json(schema: str, *, lenient: bool) -> str:
    try:
        return LLMatcher.grammar_from_json_schema(
            schema, overrides={"whitespace_pattern": _WHITESPACE, "lenient": lenient}
        )
    except ValueError as error:
        raise ConstraintError(reason(str(error))) from None


def _lark(text: str) -> str:
    try:
        return any_to_lark(text)
    except GbnfToLarkError as error:
        raise ConstraintError(f"is neither Lark nor GBNF: {reason(str(error))}") from None
    except RecursionError:
        raise ConstraintError("is nested too deeply") from None
