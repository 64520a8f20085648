"""Fields of bodies that say how a prompt is read, how its reply is told, and when it is served."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from gateway.choices import MAX_CHOICES
from gateway.http.strict import Integral, Strict
from paceline.prefix import MAX_SALT

# JSON's integers have no width of their own.
_LARGEST = 2**31
# OpenAI's bounds of metadata.
_MOST_PAIRS, _KEY_CHARACTERS, _VALUE_CHARACTERS = 16, 64, 512


def _kept(tokens: int) -> int:
    if not tokens:
        raise ValueError("must be at least 1, or -1 for as many as fit")
    return tokens


_Choices = Annotated[int, Field(ge=1, le=MAX_CHOICES)]
_Kept = Annotated[int, Field(ge=-1, le=_LARGEST), AfterValidator(_kept)]
_Name = Annotated[str, Field(max_length=_KEY_CHARACTERS)]
_Value = Annotated[str, Field(max_length=_VALUE_CHARACTERS)]


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
    # OpenAI's, for stored replies. None are stored.
    metadata: Annotated[dict[_Name, _Value], Field(max_length=_MOST_PAIRS)] | None = None
    store: bool | None = None


class TextWishes(Wishes):
    """Of plain prompts."""

    # The prompt precedes the text.
    echo: bool | None = None
    # The n most likely of so many; no more than n are drawn yet.
    best_of: Annotated[_Choices | None, Integral] = None
