"""What an answer's text is made of once it is read: content, thoughts and tool calls, piece by piece."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Said:
    """Content for the user."""

    text: str


@dataclass(frozen=True, slots=True)
class Thought:
    """Reasoning that precedes the content."""

    text: str


@dataclass(frozen=True, slots=True)
class CallBegan:
    """A call of a tool begins; calls of an answer are counted from 0."""

    index: int
    name: str


@dataclass(frozen=True, slots=True)
class CallArguments:
    """More of a call's arguments: the JSON text as the model wrote it."""

    index: int
    text: str


Part = Said | Thought | CallBegan | CallArguments


def joined(parts: Iterable[Part]) -> list[Part]:
    """The same parts, with neighbours that go on from one another put together."""
    together: list[Part] = []
    for part in parts:
        whole = _together(together[-1], part) if together else None
        if whole is None:
            together.append(part)
        else:
            together[-1] = whole
    return together


def _together(one: Part, next_one: Part) -> Part | None:
    match one, next_one:
        case Said(before), Said(text):
            return Said(before + text)
        case Thought(before), Thought(text):
            return Thought(before + text)
        case CallArguments(index, before), CallArguments(same, text) if index == same:
            return CallArguments(index, before + text)
    return None
