"""The forms in which models write tool calls."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Format:
    """One form. Within it a call is a JSON object with a name and arguments."""

    # What stands before calls, and behind them where anything does.
    opening: str = ""
    closing: str = ""
    # Whether an object may also stand bare: at the text's start, or behind another call.
    bare: bool = False
    # Whether calls may come as a JSON list.
    listed: bool = False
    # What stands between bare calls.
    separator: str = ""
    # Whether the name may stand before the arguments, instead of in an object with them.
    name_first: bool = False
    # Texts of special tokens that belong to the form.
    tokens: tuple[str, ...] = ()


FORMATS: Final = {
    "hermes": Format("<tool_call>", "</tool_call>", tokens=("<tool_call>", "</tool_call>")),
    "llama3": Format("<|python_tag|>", bare=True, separator=";", tokens=("<|python_tag|>",)),
    "mistral": Format(
        "[TOOL_CALLS]", listed=True, name_first=True, tokens=("[TOOL_CALLS]", "[ARGS]", "[CALL_ID]")
    ),
    # What models are told that were taught none: see `preamble.py`.
    "json": Format("```json", "```", bare=True, listed=True, separator=";"),
}


def format_of(template: str) -> str:
    """The name of the form that a chat template's text teaches."""
    if "[TOOL_CALLS]" in template:
        return "mistral"
    if "<tool_call>" in template:
        return "hermes"
    # Templates of Llama 3.1 and later; those of 3.2 and 3.3 write the tag only for built-in tools.
    if "<|python_tag|>" in template or ("ipython" in template and '"parameters"' in template):
        return "llama3"
    return "json"
