"""Tools in request bodies, and what is asked of their use and of reasoning."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from gateway import chat
from gateway.http.strict import Strict
from gateway.tools.choice import NAME_PATTERN, ToolUse

# How much a model is to reason.
Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh"]
Name = Annotated[str, Field(pattern=NAME_PATTERN)]


class Function(Strict):
    """A function that an answer may call."""

    name: Name
    description: str | None = None
    # A JSON schema of an object.
    parameters: dict[str, Any] | None = None
    # Whether the arguments must fit the schema.
    strict: bool | None = None


class Tool(Strict):
    """A tool; only functions are served."""

    type: Literal["function"]
    function: Function

    def plain(self) -> chat.Tool:
        """The tool as templates take it, without what it does not say."""
        said = self.function.model_dump(exclude={"strict"}, exclude_none=True)
        return {"type": "function", "function": said}


class NamedFunction(Strict):
    """A function by its name."""

    name: Name


class NamedTool(Strict):
    """The one tool that the answer must call."""

    type: Literal["function"]
    function: NamedFunction


ToolChoice = Literal["none", "auto", "required"] | NamedTool


def tool_use(tools: list[Tool] | None, choice: ToolChoice | None, parallel: bool | None) -> ToolUse:
    """What a request says of tools."""
    plain = [tool.plain() for tool in tools or ()]
    if isinstance(choice, NamedTool):
        return ToolUse(plain, "named", choice.function.name, parallel is not False)
    return ToolUse(plain, choice or "auto", parallel=parallel is not False)
