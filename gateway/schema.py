"""Request bodies, validated at the door: what is not supported is refused by name, never ignored."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from gateway.errors import INVALID, TOO_LARGE, UNKNOWN_FIELD, UNSUPPORTED, RequestError

MAX_MESSAGES = 2048
MAX_STOPS = 4
MAX_STOP_CHARACTERS = 256
MAX_SEED = 2**63 - 1


def _absent(value: Any) -> bool:
    return value is None


def _one_of(*neutral: Any) -> Callable[[Any], bool]:
    return lambda value: value is None or any(value == each and type(value) is type(each) for each in neutral)


# Fields of OpenAI's API that are not served yet, and which values of them ask for nothing.
NOT_YET: dict[str, Callable[[Any], bool]] = {
    "audio": _absent,
    "best_of": _one_of(1),
    "echo": _one_of(False),
    "frequency_penalty": _one_of(0, 0.0),
    "function_call": _one_of("none"),
    "functions": _one_of([]),
    "logit_bias": _one_of({}),
    "logprobs": _one_of(False),
    "metadata": _one_of({}),
    "modalities": _one_of(["text"]),
    "n": _one_of(1),
    "parallel_tool_calls": _one_of(True, False),
    "prediction": _absent,
    "presence_penalty": _one_of(0, 0.0),
    "reasoning_effort": _one_of("none"),
    "response_format": _one_of({"type": "text"}),
    "service_tier": _one_of("auto", "default"),
    "store": _one_of(False),
    "suffix": _one_of(""),
    "tool_choice": _one_of("none", "auto"),
    "tools": _one_of([]),
    "top_logprobs": _one_of(0),
    "verbosity": _absent,
    "web_search_options": _absent,
}


class Strict(BaseModel):
    """No silent conversions, no unknown fields."""

    model_config = ConfigDict(strict=True, extra="forbid")


class StreamOptions(Strict):
    """What a stream tells besides its text."""

    include_usage: bool = False


class Speculation(Strict):
    """Extension: how this request may be sped up. Never changes its text."""

    enabled: bool = True


Stop = Annotated[str, Field(min_length=1, max_length=MAX_STOP_CHARACTERS)]
Number = Annotated[float, Field(allow_inf_nan=False)]


def _above_zero(value: float) -> float:
    # On the wire it has single precision; whatever is smaller keeps the same one token.
    return max(value, 2.0**-126)


class Sampled(Strict):
    """What both request kinds share."""

    model: Annotated[str, Field(min_length=1, max_length=512)]
    max_tokens: Annotated[int, Field(ge=1, le=2**31)] | None = None
    temperature: Annotated[Number, Field(ge=0, le=100)] | None = None
    top_p: Annotated[Number, Field(gt=0, le=1), AfterValidator(_above_zero)] | None = None
    top_k: Annotated[int, Field(ge=0, le=2**31)] | None = None
    min_p: Annotated[Number, Field(ge=0, le=1)] | None = None
    seed: Annotated[int, Field(ge=0, le=MAX_SEED)] | None = None
    stop: Stop | Annotated[list[Stop], Field(max_length=MAX_STOPS)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: Annotated[str, Field(max_length=512)] | None = None
    speculation: Speculation | None = None

    @property
    def stops(self) -> tuple[str, ...]:
        """`stop` as a tuple."""
        if self.stop is None:
            return ()
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)


class TextPart(Strict):
    """A piece of a message's content; only text is served."""

    type: Literal["text"]
    text: str


class Message(Strict):
    """One message of a chat."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | Annotated[list[TextPart], Field(min_length=1)]
    name: Annotated[str, Field(max_length=64)] | None = None

    @property
    def text(self) -> str:
        """The content as one string."""
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)


class ChatRequest(Sampled):
    """Body of POST /v1/chat/completions."""

    messages: Annotated[list[Message], Field(min_length=1, max_length=4096)]
    max_completion_tokens: Annotated[int, Field(ge=1, le=2**31)] | None = None


class CompletionRequest(Sampled):
    """Body of POST /v1/completions."""

    prompt: (
        str
        | Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)]
        | Annotated[list[str], Field(min_length=1, max_length=1)]
    )


R = TypeVar("R", ChatRequest, CompletionRequest)


def parse(body: bytes, kind: type[R]) -> R:
    """The request in a body. Raises `RequestError` that names the first thing wrong."""
    try:
        fields = json.loads(body.decode("utf-8"), parse_constant=_no_constant)
        if b"\\u" in body:
            json.dumps(fields, ensure_ascii=False).encode()  # finds halves of surrogate pairs
    except UnicodeDecodeError as error:
        raise RequestError(INVALID, f"the body is not UTF-8: {error.reason} at byte {error.start}") from None
    except UnicodeEncodeError:
        raise RequestError(INVALID, "the body holds half a surrogate pair, which is no text") from None
    except (ValueError, RecursionError) as error:
        raise RequestError(INVALID, f"the body is not JSON: {error}") from None
    if not isinstance(fields, dict):
        raise RequestError(INVALID, "the body must be a JSON object")
    for name in sorted(fields.keys() & NOT_YET.keys()):
        if not NOT_YET[name](fields[name]):
            raise RequestError(UNSUPPORTED, f"{name} is not supported yet", name)
        del fields[name]
    unknown = sorted(fields.keys() - kind.model_fields.keys())
    if unknown:
        raise RequestError(UNKNOWN_FIELD, f"unrecognized request argument: {unknown[0]}", unknown[0])
    try:
        return kind.model_validate(fields)
    except ValidationError as error:
        raise _first_problem(error) from None


def too_large(limit: int) -> RequestError:
    """The error for a body over the limit."""
    return RequestError(TOO_LARGE, f"the body is larger than {limit} bytes")


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not a JSON number")


# How pydantic names the branches of a union in an error's place.
_BRANCHES = ("function-", "list[", "constrained")


def _first_problem(error: ValidationError) -> RequestError:
    problems = error.errors(include_url=False, include_input=False)
    # Of a union every branch complains; the one that got furthest is the one that was meant.
    problem = max(
        (each for each in problems if each["loc"][:1] == problems[0]["loc"][:1]),
        key=lambda each: (len(each["loc"]), not each["type"].endswith("_type")),
    )
    where = [str(part) for part in problem["loc"] if part != "str" and not str(part).startswith(_BRANCHES)]
    param = ".".join(where) or None
    return RequestError(INVALID, f"{param or 'body'}: {problem['msg']}", param)
