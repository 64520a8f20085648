"""Which tools an answer may call, and whether it must."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from gateway.chat import Tool
from gateway.errors import RequestError, invalid

Choice = Literal["none", "auto", "required", "named"]
# Most tools of a request.
MAX_TOOLS = 256
NAME_PATTERN = r"^[a-zA-Z0-9_.-]{1,128}$"


@dataclass(frozen=True, slots=True)
class ToolUse:
    """What a request says of tools; `named` is the one that must be called."""

    tools: Sequence[Tool] = ()
    choice: Choice = "auto"
    named: str = ""
    parallel: bool = True

    def offered(self) -> Sequence[Tool]:
        """The tools that the answer may call. Raises `RequestError`."""
        names = [name_of(tool) for tool in self.tools]
        for index, name in enumerate(names):
            if name in names[:index]:
                raise RequestError(
                    invalid("invalid_value"), f"two tools are named {name!r}", f"tools[{index}]"
                )
        if self.choice == "none":
            return ()
        if self.demands and not self.tools:
            raise RequestError(
                invalid("invalid_value"), "tool_choice asks for a call, but there are no tools", "tool_choice"
            )
        if self.choice != "named":
            return self.tools
        if self.named not in names:
            raise RequestError(
                invalid("invalid_value"), f"{self.named!r} is none of the tools", "tool_choice"
            )
        return [tool for tool in self.tools if name_of(tool) == self.named]

    @property
    def demands(self) -> bool:
        """Whether the answer must call."""
        return self.choice in ("required", "named")

    @property
    def most_calls(self) -> int | None:
        """Most calls of the answer; None for no bound."""
        return None if self.parallel and self.choice != "named" else 1


NO_TOOLS = ToolUse()


def name_of(tool: Tool) -> str:
    """The function's name."""
    return str(tool["function"]["name"])
