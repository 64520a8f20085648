"""Messages of a chat in request bodies."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from gateway.chat import ChatTurn, ToolCall
from gateway.errors import RequestError, invalid
from gateway.http import neutral
from gateway.http.strict import Strict

# Fields of a message that say something by being empty.
_TOLD = frozenset({"role", "content", "name"})
# Roles as templates know them.
_ROLES = {"developer": "system"}


class TextPart(Strict):
    """A part of a message's content; only text is served."""

    type: Literal["text"]
    text: str


class CalledFunction(Strict):
    """The function of a call, and its arguments as JSON text."""

    name: Annotated[str, Field(min_length=1, max_length=128)]
    arguments: str


class MessageToolCall(Strict):
    """A call that an assistant's message made."""

    id: Annotated[str, Field(max_length=128)]
    type: Literal["function"] = "function"
    function: CalledFunction
    # Of streamed calls; without a meaning here.
    index: int | None = None


class Message(Strict):
    """One message of a chat."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | Annotated[list[TextPart], Field(min_length=1, fail_fast=True)] | None = None
    name: Annotated[str, Field(max_length=128)] | None = None
    tool_calls: Annotated[list[MessageToolCall], Field(max_length=128)] | None = None
    tool_call_id: Annotated[str, Field(max_length=128)] | None = None
    # An assistant's reasoning, as replies name it, and by a second name that other servers use.
    reasoning_content: str | None = None
    reasoning: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _as_sent_back(cls, fields: Any) -> Any:
        return neutral.strip_message(fields, _TOLD)

    @property
    def text(self) -> str:
        """The content as one string."""
        if self.content is None or isinstance(self.content, str):
            return self.content or ""
        return "".join(part.text for part in self.content)

    def missing(self) -> Iterator[str]:
        """Fields that its role needs and that it lacks."""
        if self.content is None and self.role != "assistant":
            yield "content"
        if self.tool_call_id is None and self.role == "tool":
            yield "tool_call_id"

    def misplaced(self) -> Iterator[str]:
        """Fields that say something, and that its role does not have."""
        if self.role != "tool" and self.tool_call_id:
            yield "tool_call_id"
        if self.role != "assistant":
            yield from (name for name in _ASSISTANTS if getattr(self, name))

    def turn(self) -> ChatTurn:
        """The message as the core has it."""
        return ChatTurn(
            _ROLES.get(self.role, self.role),
            self.text,
            self.name,
            self.reasoning_content or self.reasoning or "",
            tuple(
                ToolCall.of(call.id, call.function.name, call.function.arguments)
                for call in self.tool_calls or ()
            ),
            self.tool_call_id or "",
        )


_ASSISTANTS = ("tool_calls", "reasoning_content", "reasoning")


def check_roles(messages: Sequence[Message]) -> None:
    """Raises `RequestError` for the first message that does not fit its role."""
    for index, message in enumerate(messages):
        for name in message.missing():
            param = f"messages[{index}].{name}"
            raise RequestError(
                invalid("missing_required_parameter"), f"missing required parameter: {param}", param
            )
        for name in message.misplaced():
            raise RequestError(
                invalid("invalid_value"),
                f"a message of role {message.role!r} has no {name}",
                f"messages[{index}].{name}",
            )
