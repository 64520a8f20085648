"""The grammar of an answer that must call tools, in the form that the model writes calls in."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from gateway.chat import Tool
from gateway.reasoning import Thinking
from gateway.tools.choice import name_of

_ANY_ARGUMENTS: Final[dict[str, Any]] = {"type": "object"}
# What cannot be enforced of a schema is left out. Blanks are bounded, or a model could write them for ever.
_GUIDANCE: Final = {"lenient": True, "whitespace_pattern": r"( |\r?\n[ \t]{0,64})?"}


@dataclass(frozen=True, slots=True)
class _Layout:
    """How calls are laid out: what stands before all, between two and behind all; before and behind each."""

    first: str = ""
    between: str = ""
    last: str = ""
    opening: str = ""
    closing: str = ""
    arguments: str = "arguments"


_LAYOUTS: Final = {
    "hermes": _Layout(between="\n", opening="<tool_call>\n", closing="\n</tool_call>"),
    "llama3": _Layout(between="; ", arguments="parameters"),
    "mistral": _Layout("[TOOL_CALLS] [", ", ", "]"),
    "json": _Layout("[", ", ", "]"),
}


def calls_grammar(
    form: str, tools: Sequence[Tool], *, most_calls: int | None, thinking: Thinking | None, opened: bool
) -> str:
    """A grammar in Lark's syntax: one call of one of `tools` at least, and `most_calls` at most.

    `thinking`: reasoning may precede the calls; `opened`: the prompt has begun it, so it must be ended.
    """
    return "\n".join(_lines(_LAYOUTS[form], tools, most_calls, thinking, opened))


def _lines(
    layout: _Layout, tools: Sequence[Tool], most_calls: int | None, thinking: Thinking | None, opened: bool
) -> Iterator[str]:
    more = f" ({_text(layout.between)} call)*" if most_calls != 1 else ""
    calls = " ".join(part for part in (_text(layout.first), f"call{more}", _text(layout.last)) if part)
    thought = ""
    if thinking is not None:
        thought = "thought /\\s{0,2}/ " if opened else f"({_text(thinking.opening)} thought /\\s{{0,2}}/)? "
        yield f"thought[lazy]: /(?s:.*?){_escaped(thinking.closing)}/"
    yield f"start: {thought}{calls}"
    yield f"call: {' | '.join(f'call_{index}' for index in range(len(tools)))}"
    for index, tool in enumerate(tools):
        head = f'{layout.opening}{{"name": {json.dumps(name_of(tool))}, "{layout.arguments}": '
        yield f"call_{index}: {_text(head)} arguments_{index} {_text('}' + layout.closing)}"
        yield f"arguments_{index}: %json {json.dumps({**schema_of(tool), 'x-guidance': _GUIDANCE})}"


def schema_of(tool: Tool) -> dict[str, Any]:
    """The JSON schema of a tool's arguments."""
    return tool["function"].get("parameters") or _ANY_ARGUMENTS


def _text(text: str) -> str:
    return json.dumps(text) if text else ""


def _escaped(text: str) -> str:
    """The text as a regular expression between slashes."""
    return re.escape(text).replace("/", "\\/")
