"""How an answer's text is read: reasoning first, then content and tool calls."""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha256
from typing import Any, Self

from gateway.parts import Part, Said, Thought, joined
from gateway.reasoning import STYLES, ReasoningSplit
from gateway.tools.formats import FORMATS
from gateway.tools.parser import ToolParser


@dataclass(frozen=True, slots=True)
class Reading:
    """What is looked for in an answer's text; recorded with the session, so that any gateway reads on."""

    # Name of the style of reasoning; empty where there is none.
    thinking: str = ""
    # Whether the prompt has opened the reasoning.
    opened: bool = False
    # Whether the client is told the reasoning.
    tells_thoughts: bool = True
    # Name of the form of calls; empty where no tool may be called.
    tool_format: str = ""
    tools: tuple[str, ...] = ()
    # All text behind so many calls is dropped; None for no bound.
    most_calls: int | None = None

    @classmethod
    def recorded(cls, fields: dict[str, Any]) -> Self:
        """From its fields as JSON keeps them."""
        return cls(**{**fields, "tools": tuple(fields.get("tools", ()))})

    @property
    def tokens(self) -> frozenset[str]:
        """Texts of special tokens that are needed to read the answer."""
        tokens = set(FORMATS[self.tool_format].tokens) if self.tool_format else set()
        if self.thinking:
            tokens |= {STYLES[self.thinking].opening, STYLES[self.thinking].closing}
        return frozenset(tokens)


# All text is content.
PLAIN = Reading()


class Reader:
    """Reads one answer's text as it comes. What it has told is a function of the text up to there."""

    def __init__(self, reading: Reading) -> None:
        self._tells_thoughts = reading.tells_thoughts
        self._split = (
            ReasoningSplit(STYLES[reading.thinking], opened=reading.opened) if reading.thinking else None
        )
        self._parser = (
            ToolParser(FORMATS[reading.tool_format], reading.tools, most_calls=reading.most_calls)
            if reading.tool_format
            else None
        )

    @property
    def called(self) -> bool:
        """Whether the text has called a tool."""
        return self._parser is not None and self._parser.calls > 0

    def push(self, text: str) -> list[Part]:
        """The parts that are certain with this text."""
        thought, rest = self._split.push(text) if self._split else ("", text)
        return self._parts(thought, rest)

    def flush(self) -> list[Part]:
        """The rest: the text is at its end."""
        thought, rest = self._split.flush() if self._split else ("", "")
        parts = self._parts(thought, rest)
        return joined([*parts, *self._parser.flush()]) if self._parser else parts

    def _parts(self, thought: str, rest: str) -> list[Part]:
        parts: list[Part] = [Thought(thought)] if thought and self._tells_thoughts else []
        if self._parser is not None:
            return [*parts, *self._parser.push(rest)]
        return [*parts, Said(rest)] if rest else parts


def call_id(session_id: str, index: int) -> str:
    """The id of a session's call: the same whenever and wherever it is told."""
    return f"call_{sha256(f'{session_id}:{index}'.encode()).hexdigest()[:24]}"
