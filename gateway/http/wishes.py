"""Fields of bodies that say how a prompt is read, how its reply is told, and when it is served."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from gateway.choices import MAX_CHOICES
from gateway.http.strict import Integral, Strict, integral
from paceline.logprobs import MAX_TOP_LOGPROBS, LogprobsWanted
from paceline.prefix import MAX_SALT

# JSON's integers have no width of their own.
_LARGEST = 2**31
# OpenAI's bounds of metadata.
_MOST_PAIRS, _KEY_CHARACTERS, _VALUE_CHARACTERS = 16, 64, 512


def _kept(tokens: int) -> int:
    if not tokens:
        raise ValueError("must be at least 1, or -1 for as many as fit")
    return tokens


Scores = Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)]
_Choices = Annotated[int, Field(ge=1, le=MAX_CHOICES)]
_Kept = Annotated[int, Field(ge=-1, le=_LARGEST), AfterValidator(_kept)]
_Name = Annotated[str, Field(max_length=_KEY_CHARACTERS)]
_Value = Annotated[str, Field(max_length=_VALUE_CHARACTERS)]


def _counted(value: Any) -> Any:
    # False asks for none, as in a chat.
    return None if value is False else integral(value)


class PredictedPart(Strict):
    """A part of a prediction."""

    type: Literal["text"]
    text: str


class Predicted(Strict):
    """OpenAI's predicted output: the client's own guess at its answer."""

    type: Literal["content"]
    content: str | Annotated[list[PredictedPart], Field(min_length=1, fail_fast=True)]

    @property
    def text(self) -> str:
        """The content as one string."""
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)


class Plain(Strict):
    """Of every prompt."""

    # Whether the tokenizer puts its special tokens around the prompt.
    add_special_tokens: bool | None = None


class Rendered(Plain):
    """Of chats: how the template renders them."""

    # False leaves out the start of an answer.
    add_generation_prompt: bool | None = None
    # The last message goes on, in place of an answer of its own.
    continue_final_message: bool | None = None
    # The template's own variables.
    chat_template_kwargs: dict[str, Any] | None = None


class Wishes(Plain):
    """Of both kinds of request for text."""

    # Choices for each prompt, whose seeds follow from `seed`.
    n: Annotated[_Choices | None, Integral] = None
    # The text has the stop string, or the stop id's text, that ended it.
    include_stop_str_in_output: bool | None = None
    # False shows special tokens.
    skip_special_tokens: bool | None = None
    # Neutral: nothing here adds spaces.
    spaces_between_special_tokens: bool | None = None
    return_token_ids: bool | None = None
    # The prompt's last so many tokens are its only ones; -1 keeps as many as fit.
    truncate_prompt_tokens: Annotated[_Kept | None, Integral] = None
    truncation_side: Literal["left", "right"] | None = None
    # Of those of one key that wait, the lowest is served first.
    priority: Annotated[Annotated[int, Field(ge=-_LARGEST, le=_LARGEST)] | None, Integral] = None
    # Only requests of one salt share what is computed of a prompt.
    cache_salt: Annotated[str, Field(min_length=1, max_length=MAX_SALT)] | None = None
    user: Annotated[str, Field(max_length=512)] | None = None
    # Of the prompt's tokens, and so many of the likeliest at each position.
    prompt_logprobs: Annotated[Scores | None, Integral] = None
    # Drafted from; never changes the text.
    prediction: Predicted | None = None
    # OpenAI's, for stored replies. None are stored.
    metadata: Annotated[dict[_Name, _Value], Field(max_length=_MOST_PAIRS)] | None = None
    store: bool | None = None


class ChatWishes(Wishes):
    """Of chats."""

    logprobs: bool | None = None
    # Likeliest tokens at each position, where there are log-probabilities.
    top_logprobs: Annotated[Scores | None, Integral] = None

    @property
    def scores(self) -> LogprobsWanted:
        """Log-probabilities that are asked for."""
        return LogprobsWanted((self.top_logprobs or 0) if self.logprobs else None, self.prompt_logprobs)


class TextWishes(Wishes):
    """Of plain prompts."""

    # The prompt precedes the text.
    echo: bool | None = None
    # The n likeliest of so many are told.
    best_of: Annotated[_Choices | None, Integral] = None
    # Of each token and so many of the likeliest at its position, the echoed prompt's among them.
    logprobs: Annotated[Scores | None, BeforeValidator(_counted)] = None

    @property
    def scores(self) -> LogprobsWanted:
        """Log-probabilities that are asked for."""
        of_prompt = self.prompt_logprobs
        if self.echo and self.logprobs is not None:
            of_prompt = max(self.logprobs, of_prompt or 0)
        return LogprobsWanted(self.logprobs, of_prompt)
