"""What a client asks for."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from paceline.logprobs import NO_LOGPROBS, LogprobsWanted
from paceline.net import parameters, wire
from paceline.sampling import SamplingRequest
from paceline.session import NO_LIMITS, SpeculationLimits
from paceline.v1 import gateway_pb2

_CHOICES = {
    "auto": gateway_pb2.TOOL_CHOICE_UNSPECIFIED,
    "none": gateway_pb2.TOOL_CHOICE_NONE,
    "required": gateway_pb2.TOOL_CHOICE_REQUIRED,
}


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call of a tool; `arguments` are JSON text."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class Tool:
    """A function that an answer may call; `parameters` are the JSON schema of an object."""

    name: str
    description: str = ""
    parameters: Mapping[str, Any] | None = None
    strict: bool = False

    def to_proto(self) -> gateway_pb2.Tool:
        """The tool as it goes over the wire."""
        schema = "" if self.parameters is None else json.dumps(self.parameters)
        return gateway_pb2.Tool(
            name=self.name, description=self.description, parameters=schema, strict=self.strict
        )


@dataclass(frozen=True, slots=True)
class ChatMessage:
    """One message; `role` is "system", "user", "assistant" or "tool".

    An assistant's message may have reasoning and calls; a tool's names the call whose result it is.
    """

    role: str
    content: str = ""
    reasoning: str = ""
    tool_calls: Sequence[ToolCall] = ()
    tool_call_id: str = ""
    name: str = ""

    def to_proto(self) -> gateway_pb2.ChatMessage:
        """The message as it goes over the wire."""
        return gateway_pb2.ChatMessage(
            role=self.role,
            content=self.content,
            reasoning=self.reasoning,
            tool_calls=[
                gateway_pb2.ToolCall(id=call.id, name=call.name, arguments=call.arguments)
                for call in self.tool_calls
            ],
            tool_call_id=self.tool_call_id,
            name=self.name,
        )


@dataclass(frozen=True, slots=True)
class Generation(SamplingRequest):
    """What to generate. Give exactly one of `text` (taken as it is), `chat` and `ids`.

    The gateway checks the bounds (see `GenerateRequest` in
    gateway.proto), not this class.
    """

    text: str | None = None
    chat: Sequence[ChatMessage] = ()
    ids: Sequence[int] = ()
    model: str = ""
    # As in `GenerateRequest`.
    priority: int = 0
    cache_salt: str = ""
    include_stop: bool = False
    show_special_tokens: bool = False
    truncate_prompt_tokens: int = 0
    logprobs: LogprobsWanted = NO_LOGPROBS
    # The client's own guess at the answer.
    prediction: str = ""
    # Of drafts, where `speculation` is true.
    limits: SpeculationLimits = NO_LIMITS
    # Of a chat: functions that the answer may call; whether it calls them as it likes ("auto"), does not
    # ("none"), must ("required"), or must call the one of this name.
    tools: Sequence[Tool] = ()
    tool_choice: str = "auto"
    parallel_tool_calls: bool = True
    include_reasoning: bool = True

    @classmethod
    def ask(cls, question: str, *, max_tokens: int | None = None, temperature: float = 1.0) -> Self:
        """A chat of one user message."""
        chat = (ChatMessage("user", question),)
        return cls(chat=chat, max_tokens=max_tokens, temperature=temperature)

    def to_proto(self) -> gateway_pb2.GenerateRequest:
        """The request as it goes over the wire."""
        request = gateway_pb2.GenerateRequest(
            model=self.model,
            speculation=self.speculation,
            priority=self.priority,
            cache_salt=self.cache_salt,
            include_stop=self.include_stop,
            show_special_tokens=self.show_special_tokens,
            truncate_prompt_tokens=self.truncate_prompt_tokens,
            speculation_limits=wire.limits_to_proto(self.limits),
            logprobs=wire.logprobs_to_proto(self.logprobs),
            prediction=self.prediction,
            tools=[tool.to_proto() for tool in self.tools],
            parallel_tool_calls=self.parallel_tool_calls,
            include_reasoning=self.include_reasoning,
        )
        if self.tool_choice in _CHOICES:
            request.tool_choice = _CHOICES[self.tool_choice]
        else:
            request.tool_named = self.tool_choice
        parameters.write(self, request)
        if self.constraint is not None:
            request.constraint.CopyFrom(wire.constraint_to_proto(self.constraint))
        if self.text is not None:
            request.text = self.text
        elif self.chat:
            request.chat.messages.extend(message.to_proto() for message in self.chat)
        else:
            request.tokens.ids.extend(self.ids)
        return request
