"""Chats and tools in gRPC requests."""

from __future__ import annotations

import re
from typing import Any, Final

from pydantic_core import from_json

from gateway import chat
from gateway.chat import ChatTurn
from gateway.errors import INVALID, RequestError
from gateway.request import MAX_MESSAGES
from gateway.tools.choice import MAX_TOOLS, NAME_PATTERN, Choice, ToolUse
from paceline.v1 import gateway_pb2 as pb

_ROLES = ("system", "user", "assistant", "tool")
_LONGEST_NAME = 128
_MOST_CALLS = 128
_CHOICES: Final[dict[int, Choice]] = {
    pb.TOOL_CHOICE_UNSPECIFIED: "auto",
    pb.TOOL_CHOICE_NONE: "none",
    pb.TOOL_CHOICE_REQUIRED: "required",
}


def turns(asked: pb.ChatPrompt) -> list[ChatTurn]:
    """A chat's messages. Raises `RequestError`."""
    if not asked.messages:
        raise RequestError(INVALID, "must hold at least one message", "chat.messages")
    if len(asked.messages) > MAX_MESSAGES:
        raise RequestError(
            INVALID, f"{len(asked.messages)} messages; at most {MAX_MESSAGES} are taken", "chat.messages"
        )
    return [_turn(message, f"chat.messages[{index}]") for index, message in enumerate(asked.messages)]


def _turn(message: pb.ChatMessage, place: str) -> ChatTurn:
    if message.role not in _ROLES:
        raise RequestError(INVALID, f"{message.role!r} is none of {', '.join(_ROLES)}", f"{place}.role")
    if message.role == "tool" and not message.tool_call_id:
        raise RequestError(INVALID, "a tool's message must name its call", f"{place}.tool_call_id")
    if len(message.tool_calls) > _MOST_CALLS:
        raise RequestError(INVALID, f"at most {_MOST_CALLS} calls are taken", f"{place}.tool_calls")
    if message.role != "assistant" and (message.tool_calls or message.reasoning):
        raise RequestError(INVALID, "only an assistant's message reasons and calls tools", f"{place}.role")
    return ChatTurn(
        message.role,
        message.content,
        _short(message.name, f"{place}.name") or None,
        message.reasoning,
        tuple(
            chat.ToolCall.of(
                _short(call.id, f"{place}.tool_calls[{index}].id"),
                _short(call.name, f"{place}.tool_calls[{index}].name", least=1),
                call.arguments,
            )
            for index, call in enumerate(message.tool_calls)
        ),
        _short(message.tool_call_id, f"{place}.tool_call_id"),
    )


def _short(text: str, field: str, *, least: int = 0) -> str:
    if not least <= len(text) <= _LONGEST_NAME:
        raise RequestError(INVALID, f"must have {least} to {_LONGEST_NAME} characters", field)
    return text


def tool_use(request: pb.GenerateRequest) -> ToolUse:
    """What a request says of tools. Raises `RequestError`."""
    if len(request.tools) > MAX_TOOLS:
        raise RequestError(INVALID, f"{len(request.tools)} tools; at most {MAX_TOOLS} are taken", "tools")
    if request.tool_choice not in _CHOICES:
        raise RequestError(INVALID, f"{request.tool_choice} is no ToolChoice", "tool_choice")
    choice: Choice = "named" if request.tool_named else _CHOICES[request.tool_choice]
    parallel = not request.HasField("parallel_tool_calls") or request.parallel_tool_calls
    tools = [_tool(tool, f"tools[{index}]") for index, tool in enumerate(request.tools)]
    return ToolUse(tools, choice, request.tool_named, parallel)


def tells_thoughts(request: pb.GenerateRequest) -> bool:
    """Whether chunks have the model's reasoning."""
    return not request.HasField("include_reasoning") or request.include_reasoning


def _tool(tool: pb.Tool, place: str) -> chat.Tool:
    if not re.match(NAME_PATTERN, tool.name):
        raise RequestError(INVALID, "must be 1 to 128 characters of [A-Za-z0-9_.-]", f"{place}.name")
    function: dict[str, Any] = {"name": tool.name}
    if tool.description:
        function["description"] = tool.description
    if tool.parameters:
        function["parameters"] = _schema(tool.parameters, f"{place}.parameters")
    return {"type": "function", "function": function}


def _schema(text: str, field: str) -> dict[str, Any]:
    try:
        schema = from_json(text, allow_inf_nan=False)
    except ValueError as error:
        raise RequestError(INVALID, f"is not JSON: {error}", field) from None
    if not isinstance(schema, dict):
        raise RequestError(INVALID, "must be a JSON object", field)
    return schema
