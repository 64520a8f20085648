"""What a client asks for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from paceline.net import parameters, wire
from paceline.sampling import SamplingRequest
from paceline.session import NO_LIMITS, SpeculationLimits
from paceline.v1 import gateway_pb2


@dataclass(frozen=True, slots=True)
class ChatMessage:
    """One message; `role` is "system", "user" or "assistant"."""

    role: str
    content: str


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
    # Of drafts, where `speculation` is true.
    limits: SpeculationLimits = NO_LIMITS

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
        )
        parameters.write(self, request)
        if self.constraint is not None:
            request.constraint.CopyFrom(wire.constraint_to_proto(self.constraint))
        if self.text is not None:
            request.text = self.text
        elif self.chat:
            request.chat.messages.extend(
                gateway_pb2.ChatMessage(role=message.role, content=message.content) for message in self.chat
            )
        else:
            request.tokens.ids.extend(self.ids)
        return request
