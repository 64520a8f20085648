"""A chat as its client gives it: messages, calls of tools and their results, and the tools."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from pydantic_core import from_json

# A function as OpenAI's API describes it: {"type": "function", "function": {"name", ...}}.
Tool = dict[str, Any]


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call that an assistant's message made."""

    id: str
    name: str
    # The value of their JSON text; the text itself where it is no JSON.
    arguments: Any

    @classmethod
    def of(cls, call_id: str, name: str, arguments: str) -> ToolCall:
        """From the arguments' JSON text."""
        with suppress(ValueError):
            return cls(call_id, name, from_json(arguments, allow_inf_nan=False))
        return cls(call_id, name, arguments)


@dataclass(frozen=True, slots=True)
class ChatTurn:
    """One message: role "system", "user", "assistant" or "tool", and its text."""

    role: str
    content: str
    name: str | None = None
    # An assistant's thoughts before the content, and the calls behind it.
    reasoning: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    # The call whose result a tool's message is.
    tool_call_id: str = ""

    def mapped(self, change: Callable[[str], str]) -> ChatTurn:
        """The message with each of its texts changed."""
        return replace(
            self,
            content=change(self.content),
            name=None if self.name is None else change(self.name),
            reasoning=change(self.reasoning),
            tool_calls=tuple(
                ToolCall(change(call.id), change(call.name), mapped(call.arguments, change, names=True))
                for call in self.tool_calls
            ),
            tool_call_id=change(self.tool_call_id),
        )


@dataclass(frozen=True, slots=True)
class Chat:
    """Messages, and the tools that the answer may call."""

    turns: Sequence[ChatTurn]
    tools: Sequence[Tool] = ()

    @property
    def characters(self) -> int:
        """Length of the texts in it, about."""
        said = sum(len(turn.content) + len(turn.reasoning) + _length(turn.tool_calls) for turn in self.turns)
        return said + _length(self.tools)

    def mapped(self, change: Callable[[str], str]) -> Chat:
        """The chat with each text in it changed."""
        return Chat(
            [turn.mapped(change) for turn in self.turns],
            [mapped(tool, change, names=True) for tool in self.tools],
        )


def _length(values: Sequence[Any]) -> int:
    return len(str(values)) if values else 0


def mapped(value: Any, change: Callable[[str], str], *, names: bool = False) -> Any:
    """The JSON value with each string in it changed; `names`: those of members too."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        told = ((change(name) if names else name, each) for name, each in value.items())
        return {name: mapped(each, change, names=names) for name, each in told}
    return [mapped(each, change, names=names) for each in value] if isinstance(value, list) else value
