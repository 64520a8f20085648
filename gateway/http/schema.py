"""Schemas of request bodies. An unsupported field is refused by name, never ignored."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar, cast

from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationError,
    create_model,
    model_validator,
)

from gateway.choices import MAX_CHOICES
from gateway.errors import RequestError, invalid
from gateway.http import neutral, sampled
from gateway.http.body import fields_of
from gateway.http.constrained import Constrained
from gateway.http.problems import first_problem
from gateway.http.sampled import Integral, TokenId
from gateway.request import MAX_MESSAGES
from paceline.sampling import SamplingRequest


class Strict(BaseModel):
    """A model without silent conversions and without unknown fields."""

    model_config = ConfigDict(strict=True, extra="forbid")


class StreamOptions(Strict):
    """What a stream contains besides its text."""

    include_usage: bool = False
    # vLLM's: usage in each chunk.
    continuous_usage_stats: bool = False


class Speculation(Strict):
    """Extension: whether drafters may help. Never changes the text."""

    enabled: bool = True


Count = Annotated[int, Field(ge=1, le=2**31)]


class Shared(Strict, Constrained):
    """The fields of both kinds of request, beside the sampling parameters."""

    model: Annotated[str, Field(min_length=1, max_length=512)]
    # Choices for each prompt, whose seeds follow from `seed`.
    n: Annotated[Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None, Integral] = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: Annotated[str, Field(max_length=512)] | None = None
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


class TextPart(Strict):
    """A part of a message's content; only text is served."""

    type: Literal["text"]
    text: str


class Message(Strict):
    """One message of a chat."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | Annotated[list[TextPart], Field(min_length=1, fail_fast=True)]
    name: Annotated[str, Field(max_length=64)] | None = None

    @model_validator(mode="before")
    @classmethod
    def _as_sent_back(cls, fields: Any) -> Any:
        return neutral.strip_message(fields, frozenset(cls.model_fields))

    @property
    def text(self) -> str:
        """The content as one string."""
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)


Prompt = str | Annotated[list[TokenId], Field(min_length=1, fail_fast=True)]
Batch = Annotated[list[Prompt], Field(max_length=MAX_CHOICES, fail_fast=True)]


def _is_batch(prompt: Any) -> bool:
    return isinstance(prompt, list) and bool(prompt) and isinstance(prompt[0], str | list)


def _shape(prompt: Any) -> str:
    return "list[prompt]" if _is_batch(prompt) else "list[id]"


class ChatRequest(Sampled):
    """Body of POST /v1/chat/completions."""

    messages: Annotated[list[Message], Field(min_length=1, max_length=MAX_MESSAGES, fail_fast=True)]
    max_completion_tokens: Annotated[Count | None, Integral] = None


class CompletionRequest(Sampled):
    """Body of POST /v1/completions."""

    prompt: Annotated[
        Annotated[Prompt, Tag("list[id]")] | Annotated[Batch, Tag("list[prompt]")], Discriminator(_shape)
    ]
    # The n most likely of so many; which are, no more than n would say.
    best_of: Annotated[Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None, Integral] = None

    @property
    def prompts(self) -> list[str | list[int]]:
        """Each prompt, as a text or ids."""
        return cast("list[str | list[int]]", self.prompt if _is_batch(self.prompt) else [self.prompt])


R = TypeVar("R", ChatRequest, CompletionRequest)


def parse(body: bytes, kind: type[R]) -> R:
    """The request in a body. Raises `RequestError` that names the first invalid field."""
    fields = fields_of(body)
    plain = kind is CompletionRequest
    not_yet = neutral.NOT_YET_OF_TEXTS if plain else neutral.NOT_YET_OF_CHATS
    neutral.strip(fields, frozenset(kind.model_fields), not_yet)
    if plain:
        fields["prompt"] = _one_prompt(fields.get("prompt"))
    try:
        return kind.model_validate(fields)
    except ValidationError as error:
        raise first_problem(error) from None


def _one_prompt(prompt: Any) -> Any:
    """The prompt itself, of a list of one prompt."""
    if prompt is None:
        raise RequestError(
            invalid("missing_required_parameter"), "missing required parameter: prompt", "prompt"
        )
    if not isinstance(prompt, list) or not prompt or not isinstance(prompt[0], str | list):
        return prompt
    return prompt[0] if len(prompt) == 1 else prompt
