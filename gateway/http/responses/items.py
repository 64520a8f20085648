"""Items of a response's input: messages, calls of tools, their results, and reasoning."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from gateway.chat import ChatTurn, ToolCall
from gateway.http.strict import Strict

_Id = Annotated[str, Field(max_length=128)]
_ROLES = {"developer": "system"}
# Fields that say something by being empty.
_TOLD = frozenset({"role", "content", "output", "arguments", "summary", "text"})


class Item(Strict):
    """What items share; those that this server sent are taken back as they came."""

    id: _Id | None = None
    status: Literal["in_progress", "completed", "incomplete"] | None = None

    @model_validator(mode="before")
    @classmethod
    def _as_sent_back(cls, fields: Any) -> Any:
        if not isinstance(fields, dict):
            return fields
        empty: tuple[Any, ...] = (None, "", [], {})
        return {name: value for name, value in fields.items() if name in _TOLD or value not in empty}


class TextPart(Strict):
    """A text of a message, given or sent."""

    type: Literal["input_text", "output_text", "text"]
    text: str
    # Of sent texts; without a meaning here.
    annotations: list[Any] | None = None
    logprobs: list[Any] | None = None


Text = str | Annotated[list[TextPart], Field(fail_fast=True)]


class MessageItem(Item):
    """A message."""

    type: Literal["message"] = "message"
    role: Literal["system", "developer", "user", "assistant"]
    content: Text
    phase: str | None = None


class CallItem(Item):
    """A call that an earlier response made."""

    type: Literal["function_call"]
    call_id: _Id
    name: Annotated[str, Field(min_length=1, max_length=128)]
    arguments: str


class ResultItem(Item):
    """What a call gave."""

    type: Literal["function_call_output"]
    call_id: _Id
    output: Text


class ReasoningPart(Strict):
    """A text of reasoning."""

    type: Literal["reasoning_text", "summary_text"]
    text: str


class ReasoningItem(Item):
    """Reasoning of an earlier response."""

    type: Literal["reasoning"]
    summary: list[ReasoningPart] | None = None
    content: list[ReasoningPart] | None = None


def _kind(item: Any) -> str:
    given = item.get("type") if isinstance(item, dict) else None
    return f"item-{given if given is not None else 'message'}"


InputItem = Annotated[
    Annotated[MessageItem, Tag("item-message")]
    | Annotated[CallItem, Tag("item-function_call")]
    | Annotated[ResultItem, Tag("item-function_call_output")]
    | Annotated[ReasoningItem, Tag("item-reasoning")],
    Discriminator(
        _kind,
        custom_error_type="item_type",
        custom_error_message="type must be message, function_call, function_call_output or reasoning",
    ),
]


def turns(items: Sequence[InputItem]) -> list[ChatTurn]:
    """The chat that the items are. Reasoning and calls belong to one turn with the answer between them."""
    told: list[ChatTurn] = []
    thoughts = ""
    for item in items:
        match item:
            case MessageItem():
                role = _ROLES.get(item.role, item.role)
                reasoning = thoughts if role == "assistant" else ""
                told.append(ChatTurn(role, text_of(item.content), reasoning=reasoning))
                thoughts = ""
            case ReasoningItem():
                thoughts = "".join(part.text for part in item.content or item.summary or ())
            case CallItem():
                call = ToolCall.of(item.call_id, item.name, item.arguments)
                if not told or told[-1].role != "assistant" or thoughts:
                    told.append(ChatTurn("assistant", "", reasoning=thoughts))
                    thoughts = ""
                told[-1] = replace(told[-1], tool_calls=(*told[-1].tool_calls, call))
            case ResultItem():
                told.append(ChatTurn("tool", text_of(item.output), tool_call_id=item.call_id))
    return told


def text_of(content: Text) -> str:
    """The content as one string."""
    return content if isinstance(content, str) else "".join(part.text for part in content)
