"""Holds an answer to a call, where the request demands one."""

from __future__ import annotations

from dataclasses import replace

from gateway.errors import RequestError, invalid
from gateway.reading import Reading
from gateway.reasoning import STYLES
from gateway.tools.choice import ToolUse
from gateway.tools.grammar import calls_grammar, schema_of
from paceline.constraints.constraint import Constraint, ConstraintError, Kind
from paceline.sampling import SamplingRequest


def demanded(sampling: SamplingRequest, use: ToolUse, reading: Reading) -> SamplingRequest:
    """The parameters, with the constraint that tools are called if they must be. Raises `RequestError`.

    `reading`: how the answer is read.
    """
    if not use.demands:
        return sampling
    if sampling.constraint is not None:
        raise RequestError(
            invalid("invalid_value"), "a demanded call cannot be combined with another form", "tool_choice"
        )
    tools = use.offered()
    for index, tool in enumerate(tools):
        _check(Constraint.schema(schema_of(tool), lenient=True), f"tools[{index}].function.parameters")
    grammar = calls_grammar(
        reading.tool_format,
        tools,
        most_calls=use.most_calls,
        thinking=STYLES.get(reading.thinking),
        opened=reading.opened,
    )
    constraint = Constraint(Kind.GRAMMAR, grammar)
    _check(constraint, "tools")
    return replace(sampling, constraint=constraint)


def _check(constraint: Constraint, field: str) -> None:
    try:
        constraint.check()
    except ConstraintError as error:
        raise RequestError(invalid("invalid_value"), f"{field} {error}", field) from None
