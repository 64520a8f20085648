"""Schemas of request bodies. An unsupported field is refused by name, never ignored."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar, cast

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationError,
    model_validator,
)

from gateway.choices import MAX_CHOICES
from gateway.errors import RequestError, invalid
from gateway.http import neutral
from gateway.http.body import fields_of
from gateway.http.problems import first_problem
from gateway.request import MAX_MESSAGES
from paceline.sampling import (
    CLIENT_BOUNDS,
    MAX_CLIENT_STOP_IDS,
    MAX_STOP_CHARACTERS,
    MAX_STOPS,
    SamplingRequest,
)

# JSON's integers have no width of their own.
_LARGEST_COUNT = 2**31


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


Stop = Annotated[str, Field(min_length=1, max_length=MAX_STOP_CHARACTERS)]
Number = Annotated[float, Field(allow_inf_nan=False)]


def _within(parameter: str) -> Any:
    """The bounds of a sampling parameter as a pydantic field."""
    bound = CLIENT_BOUNDS[parameter]
    return Field(ge=bound.low, le=_LARGEST_COUNT if bound.high is None else bound.high)


def _integral(value: Any) -> Any:
    # Some languages have no integers: 5.0 counts as 5.
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _unless(*neutral_values: Any) -> BeforeValidator:
    """Takes these values as "not given", as other servers do."""

    def given(value: Any) -> Any:
        value = _integral(value)
        same = any(value == each and type(value) is type(each) for each in neutral_values)
        return None if same else value

    return BeforeValidator(given)


Integral = BeforeValidator(_integral)
Count = Annotated[int, _within("max_tokens")]
TokenId = Annotated[int, Field(ge=0, lt=2**32)]


class Sampled(Strict):
    """The fields that both kinds of request share."""

    model: Annotated[str, Field(min_length=1, max_length=512)]
    max_tokens: Annotated[Count | None, Integral] = None
    temperature: Annotated[Number, _within("temperature")] | None = None
    top_p: Annotated[Number, _within("top_p")] | None = None
    top_k: Annotated[Annotated[int, _within("top_k")] | None, _unless(-1)] = None
    min_p: Annotated[Number, _within("min_p")] | None = None
    seed: Annotated[Annotated[int, _within("seed")] | None, _unless(-1)] = None
    # Choices for each prompt, whose seeds follow from `seed`.
    n: Annotated[Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None, Integral] = None
    stop: Annotated[Stop | Annotated[list[Stop], Field(max_length=MAX_STOPS)] | None, _unless("")] = None
    stop_token_ids: Annotated[list[TokenId], Field(max_length=MAX_CLIENT_STOP_IDS)] | None = None
    min_tokens: Annotated[Annotated[int, _within("min_tokens")] | None, Integral] = None
    ignore_eos: bool | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: Annotated[str, Field(max_length=512)] | None = None
    speculation: Speculation | None = None

    def sampling(self, max_tokens: int | None) -> SamplingRequest:
        """The sampling parameters; `max_tokens` is passed in, as its name and default differ by route."""
        return SamplingRequest(
            max_tokens=max_tokens,
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            min_p=self.min_p,
            seed=self.seed,
            stop=(self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ()),
            stop_token_ids=tuple(self.stop_token_ids or ()),
            ignore_eos=bool(self.ignore_eos),
            min_tokens=self.min_tokens or 0,
            speculation=self.speculation is None or self.speculation.enabled,
        )


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
