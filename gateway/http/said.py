"""An answer's parts as OpenAI's messages and deltas have them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from gateway.parts import CallArguments, CallBegan, Part, Said, Thought
from gateway.reading import call_id
from paceline.session import FinishReason


def message(parts: Iterable[Part], session_id: str) -> dict[str, Any]:
    """The assistant's whole message."""
    told = delta(parts, session_id)
    calls = told.pop("tool_calls", [])
    content = told.pop("content", None if calls else "")
    made: dict[str, Any] = {"role": "assistant", "content": content, "refusal": None, **told}
    if calls:
        made["tool_calls"] = [{name: call[name] for name in ("id", "type", "function")} for call in calls]
    return made


def delta(parts: Iterable[Part], session_id: str) -> dict[str, Any]:
    """What these parts add to the message. A call's first delta has its id and name."""
    told: dict[str, Any] = {}
    calls: dict[int, dict[str, Any]] = {}
    for part in parts:
        match part:
            case Said(text):
                told["content"] = told.get("content", "") + text
            case Thought(text):
                told["reasoning_content"] = told.get("reasoning_content", "") + text
            case CallBegan(index, name):
                calls[index] = {
                    "index": index,
                    "id": call_id(session_id, index),
                    "type": "function",
                    "function": {"name": name, "arguments": ""},
                }
            case CallArguments(index, text):
                call = calls.setdefault(index, {"index": index, "function": {"arguments": ""}})
                call["function"]["arguments"] += text
    if calls:
        told["tool_calls"] = list(calls.values())
    return told


def content(parts: Iterable[Part]) -> str:
    """What is said, without reasoning and calls."""
    return "".join(part.text for part in parts if isinstance(part, Said))


def finish_reason(reason: FinishReason, *, called: bool) -> str:
    """OpenAI's word for why a message ended that `called` tools or not."""
    return "tool_calls" if called and reason is FinishReason.STOP else str(reason)
