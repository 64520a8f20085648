"""The body of POST /v1/responses."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Annotated, Any, Literal

from pydantic import Field

from gateway import chat
from gateway.errors import UNKNOWN_FIELD, RequestError, invalid
from gateway.http import neutral
from gateway.http.responses.items import InputItem
from gateway.http.schema import Count, Sampled
from gateway.http.strict import Integral, Strict
from gateway.http.tools import Effort, Name
from gateway.request import MAX_MESSAGES
from gateway.tools.choice import MAX_TOOLS, ToolUse
from paceline.constraints.constraint import Constraint, Kind

# Fields of other routes' requests that this one does not have.
_OTHERS = (
    "max_tokens",
    "n",
    "stream_options",
    "return_token_ids",
    "add_special_tokens",
    "prompt_logprobs",
)


def _of_includes(value: Any) -> bool:
    """Reasoning is told in plain text, so nothing of it is left out."""
    return isinstance(value, list) and set(map(str, value)) <= {"reasoning.encrypted_content"}


_NOT_YET: dict[str, Callable[[Any], bool]] = {
    **neutral.NOT_YET,
    "background": lambda value: value is False,
    "context_management": lambda value: value == [],
    "conversation": lambda value: False,
    "include": _of_includes,
    "max_tool_calls": lambda value: False,
    "prompt": lambda value: False,
    "prompt_cache_retention": lambda value: value in ("in_memory", "24h"),
    "top_logprobs": lambda value: value == 0,
    "truncation": lambda value: value == "disabled",
}


class FunctionTool(Strict):
    """A function that the response may call."""

    type: Literal["function"]
    name: Name
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None

    def plain(self) -> chat.Tool:
        """The tool as templates take it."""
        said = self.model_dump(exclude={"strict", "type"}, exclude_none=True)
        return {"type": "function", "function": said}


class NamedTool(Strict):
    """The one tool that the response must call."""

    type: Literal["function"]
    name: Name


class Reasoning(Strict):
    """How much the model is to reason. Reasoning is told in full, whatever summary is asked for."""

    effort: Effort | None = None
    summary: Literal["auto", "concise", "detailed"] | None = None
    generate_summary: Literal["auto", "concise", "detailed"] | None = None


class TextFormat(Strict):
    """What the text must be."""

    type: Literal["text", "json_object", "json_schema"]
    name: Annotated[str, Field(max_length=64)] | None = None
    description: str | None = None
    schema_: Annotated[dict[str, Any] | None, Field(alias="schema")] = None
    # What cannot be enforced of a schema is refused where it is strict, and left out else.
    strict: bool | None = None

    def check(self) -> None:
        """Raises `RequestError` for JSON of a schema that is not given."""
        if self.type == "json_schema" and self.schema_ is None:
            param = "text.format.schema"
            raise RequestError(
                invalid("missing_required_parameter"), f"missing required parameter: {param}", param
            )


class TextForm(Strict):
    """The form of the text."""

    format: TextFormat | None = None
    verbosity: Literal["medium"] | None = None


class ResponsesRequest(Sampled):
    """Body of POST /v1/responses."""

    not_yet = _NOT_YET
    input: str | Annotated[list[InputItem], Field(min_length=1, max_length=MAX_MESSAGES, fail_fast=True)]
    instructions: str | None = None
    max_output_tokens: Annotated[Count | None, Integral] = None
    previous_response_id: Annotated[str, Field(max_length=128)] | None = None
    tools: Annotated[list[FunctionTool], Field(max_length=MAX_TOOLS)] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    parallel_tool_calls: bool | None = None
    reasoning: Reasoning | None = None
    text: TextForm | None = None

    def _all(self) -> Iterator[tuple[str, Constraint | None]]:
        yield from super()._all()
        form = self.text.format if self.text else None
        if form is not None and form.type == "json_object":
            yield "text.format", Constraint(Kind.JSON_OBJECT)
        elif form is not None and form.schema_ is not None:
            yield "text.format.schema", Constraint.schema(form.schema_, lenient=not form.strict)

    def check(self) -> None:
        """Raises `RequestError` for a field that this route does not have, or lacks."""
        if self.text and self.text.format:
            self.text.format.check()
        for name in _OTHERS:
            if getattr(self, name) is not None:
                raise RequestError(UNKNOWN_FIELD, f"unrecognized request argument: {name}", name)

    @property
    def tool_use(self) -> ToolUse:
        """What it says of tools."""
        plain = [tool.plain() for tool in self.tools or ()]
        parallel = self.parallel_tool_calls is not False
        if isinstance(self.tool_choice, NamedTool):
            return ToolUse(plain, "named", self.tool_choice.name, parallel)
        return ToolUse(plain, self.tool_choice or "auto", parallel=parallel)
