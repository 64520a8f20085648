"""Schemas of request bodies. An unsupported field is refused by name, never ignored."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, TypeVar, cast

from pydantic import (
    Discriminator,
    Field,
    Tag,
    ValidationError,
    create_model,
)

from gateway.choices import MAX_CHOICES
from gateway.errors import INVALID, RequestError, invalid
from gateway.http import neutral, sampled
from gateway.http.body import fields_of
from gateway.http.constrained import Constrained
from gateway.http.messages import Message, check_roles
from gateway.http.problems import first_problem, place, unknown_places
from gateway.http.sampled import TokenId
from gateway.http.strict import Integral, Strict
from gateway.http.tools import Effort, Tool, ToolChoice
from gateway.http.wishes import ChatWishes, Rendered, TextWishes, Wishes
from gateway.request import MAX_MESSAGES
from gateway.tools.choice import MAX_TOOLS
from paceline.sampling import SamplingRequest
from paceline.session import METHOD_NAME, SpeculationLimits

# No verifier's trees are larger.
_MOST_NODES = 4096
# A list of messages is validated up to its first fault.
_MOST_ROUNDS = 64


class StreamOptions(Strict):
    """What a stream contains besides its text."""

    include_usage: bool = False
    # vLLM's: usage in each chunk.
    continuous_usage_stats: bool = False


class Speculation(Strict):
    """Extension: whether drafters may help, and how much. Never changes the text."""

    enabled: bool = True
    # Most nodes of a step's tree, and its greatest depth.
    max_nodes: Annotated[Annotated[int, Field(ge=1, le=_MOST_NODES)] | None, Integral] = None
    max_depth: Annotated[Annotated[int, Field(ge=1, le=_MOST_NODES)] | None, Integral] = None
    # Only nodes of the drafting method of this name, and nodes that lead to them.
    method: Annotated[str, Field(pattern=f"^{METHOD_NAME.pattern}$")] | None = None

    @property
    def limits(self) -> SpeculationLimits:
        """What it allows drafts."""
        return SpeculationLimits(self.max_nodes or 0, self.max_depth or 0, self.method or "")


Count = Annotated[int, Field(ge=1, le=2**31)]


class Shared(Wishes, Constrained):
    """The fields of both kinds of request, beside the sampling parameters."""

    model: Annotated[str, Field(min_length=1, max_length=512)]
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    speculation: Speculation | None = None

    def sampling(self, max_tokens: int | None) -> SamplingRequest:
        """The sampling parameters; `max_tokens` is passed in, as its name and default differ by route."""
        given = {**sampled.given(self), "max_tokens": max_tokens}
        speculation = self.speculation is None or self.speculation.enabled
        return SamplingRequest(**given, speculation=speculation, constraint=self.constraint)


if TYPE_CHECKING:

    class Sampled(Shared):
        """Of the sampling parameters only this one is read by name."""

        max_tokens: int | None = None

else:
    Sampled = create_model("Sampled", __base__=Shared, __module__=__name__, **sampled.fields())


Prompt = str | Annotated[list[TokenId], Field(min_length=1, fail_fast=True)]
Batch = Annotated[list[Prompt], Field(max_length=MAX_CHOICES, fail_fast=True)]


def _is_batch(prompt: Any) -> bool:
    return isinstance(prompt, list) and bool(prompt) and isinstance(prompt[0], str | list)


def _shape(prompt: Any) -> str:
    return "list[prompt]" if _is_batch(prompt) else "list[id]"


class ChatRequest(Sampled, ChatWishes, Rendered):
    """Body of POST /v1/chat/completions."""

    not_yet = neutral.NOT_YET_OF_CHATS
    messages: Annotated[list[Message], Field(min_length=1, max_length=MAX_MESSAGES, fail_fast=True)]
    max_completion_tokens: Annotated[Count | None, Integral] = None
    tools: Annotated[list[Tool], Field(max_length=MAX_TOOLS)] | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    # vLLM's: whether the reply tells the model's reasoning.
    include_reasoning: bool | None = None
    # Told to the chat template.
    reasoning_effort: Effort | None = None

    def check(self) -> None:
        """Raises `RequestError` for a message that does not fit its role."""
        check_roles(self.messages)


class CompletionRequest(Sampled, TextWishes):
    """Body of POST /v1/completions."""

    not_yet = neutral.NOT_YET_OF_TEXTS
    prompt: Annotated[
        Annotated[Prompt, Tag("list[id]")] | Annotated[Batch, Tag("list[prompt]")], Discriminator(_shape)
    ]

    @property
    def prompts(self) -> list[str | list[int]]:
        """Each prompt, as a text or ids."""
        return cast("list[str | list[int]]", self.prompt if _is_batch(self.prompt) else [self.prompt])


class TokenizeRequest(Rendered):
    """Body of POST /tokenize: a text, or a chat."""

    not_yet = neutral.NOT_YET_OF_TOKENS
    model: Annotated[str, Field(max_length=512)] = ""
    prompt: str | None = None
    messages: (
        Annotated[list[Message], Field(min_length=1, max_length=MAX_MESSAGES, fail_fast=True)] | None
    ) = None
    # Each id as the vocabulary spells it, too.
    return_token_strs: bool | None = None

    def check(self) -> None:
        """Raises `RequestError` for a message that does not fit its role."""
        check_roles(self.messages or ())


class DetokenizeRequest(Strict):
    """Body of POST /detokenize."""

    model: Annotated[str, Field(max_length=512)] = ""
    tokens: Annotated[list[TokenId], Field(fail_fast=True)]


R = TypeVar("R", bound=Strict)


def parse(body: bytes, kind: type[R], *, ignoring: bool = False) -> R:
    """The request in a body. Raises `RequestError` that names the first invalid field.

    `ignoring`: fields that are not known are left out, and named in `ignored`.
    """
    fields = fields_of(body)
    ignored = neutral.strip(fields, frozenset(kind.model_fields), kind.not_yet, ignoring=ignoring)
    if issubclass(kind, CompletionRequest):
        fields["prompt"] = _one_prompt(fields.get("prompt"))
    made = _validated(fields, kind, ignored if ignoring else None)
    made.ignore(ignored)
    made.check()
    return made


def _validated(fields: dict[str, Any], kind: type[R], ignored: list[str] | None) -> R:
    """The request of these fields. Without `ignored` unknown ones are refused; else they are added to it."""
    for _ in range(_MOST_ROUNDS):
        try:
            return kind.model_validate(fields)
        except ValidationError as error:
            places = unknown_places(error) if ignored is not None else []
            if ignored is None or not places:
                raise first_problem(error) from None
            for parts in places:
                _remove(fields, parts)
                ignored.append(place(parts) or "")
    raise RequestError(INVALID, "the body has too many fields that are not known")


def _remove(fields: Any, parts: list[int | str]) -> None:
    for part in parts[:-1]:
        fields = fields[part]
    del fields[parts[-1]]


def _one_prompt(prompt: Any) -> Any:
    """The prompt itself, of a list of one prompt."""
    if prompt is None:
        raise RequestError(
            invalid("missing_required_parameter"), "missing required parameter: prompt", "prompt"
        )
    if not isinstance(prompt, list) or not prompt or not isinstance(prompt[0], str | list):
        return prompt
    return prompt[0] if len(prompt) == 1 else prompt
