"""Renders messages with the model's chat template, and makes sure that no message's text is lost."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from typing import Any

import transformers

from gateway.errors import RequestError, invalid
from paceline.service import telemetry

log = telemetry.logger(__name__)

# Chats to try a template with. Some templates require a system message or an answer, others refuse them.
_CHATS = (
    ("system", "user", "assistant", "user"),
    ("user", "assistant", "user"),
    ("system", "user"),
    ("user",),
)
_ROLES = frozenset({"system", "user", "assistant"})
_SENTINEL = "pacelinesentinel"
_WORDS = re.compile(r"\w+")
# From how much of a text's end the word is taken that must be in the rendering.
_END_CHARACTERS = 200
_MOST_CHARACTERS = 1000
# Each one costs another rendering.
_MOST_SWITCHES = 3
# Most characters and values of a template's variables, together.
_MOST_VARIABLES = 4096
# What is not the template's own to be set.
_RESERVED = frozenset(
    ["messages", *inspect.signature(transformers.PreTrainedTokenizerBase.apply_chat_template).parameters]
)


@dataclass(frozen=True, slots=True)
class ChatTurn:
    """One message: role "system", "user" or "assistant", and its text."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Rendering:
    """How a chat is rendered."""

    # Whether the start of an answer follows the last message.
    begin_answer: bool = True
    # Whether the last message is left open, to be gone on with.
    continue_last: bool = False
    # Variables of the template's own.
    variables: Mapping[str, Any] = field(default_factory=dict)

    def check(self) -> None:
        """Raises `RequestError` for what no template takes."""
        if self.begin_answer and self.continue_last:
            raise RequestError(
                invalid("invalid_value"),
                "continue_final_message is only taken with add_generation_prompt=false",
                "continue_final_message",
            )
        if taken := sorted(_RESERVED & self.variables.keys()):
            raise RequestError(
                invalid("invalid_value"),
                f"chat_template_kwargs must not set {taken[0]}",
                f"chat_template_kwargs.{taken[0]}",
            )
        if _size(self.variables) > _MOST_VARIABLES:
            raise RequestError(
                invalid("invalid_value"),
                f"chat_template_kwargs holds more than {_MOST_VARIABLES} characters and values",
                "chat_template_kwargs",
            )

    def mapped(self, change: Callable[[str], str]) -> Rendering:
        """The same with each string among the variables' values changed."""
        return replace(self, variables=_mapped(self.variables, change)) if self.variables else self


AS_USUAL = Rendering()
# Without the start of an answer.
_OPEN = Rendering(begin_answer=False)


class ChatTemplate:
    """A tokenizer's chat template.

    Most templates take a message's content as a string; some, of vision models, take a list of parts. Which
    one is found out once, by rendering: a template that expects parts drops a string without an error.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        # Roles whose content is passed as parts.
        self._in_parts: frozenset[str] = frozenset()
        # A rendered chat without the start of its answer. It holds the tokens that delimit turns.
        self.example = ""
        self._loses = False
        # Roles whose text must be found in each rendering.
        self._looked_for = _ROLES
        self._try()

    def render(self, turns: Sequence[ChatTurn], rendering: Rendering = AS_USUAL) -> str:
        """The text of a chat up to the start of its answer.

        Raises `RequestError` with the template's own message, or if the template drops a message's text.
        """
        try:
            text = self._apply(turns, self._in_parts, rendering)
        except Exception as error:
            # A template is a program: it may raise its own messages, and any other exception.
            words = str(error)[:_MOST_CHARACTERS]
            raise _refused(f"the model's chat template refuses this: {words}") from error
        if self._loses:
            raise _refused("the model's chat template shows no message's text: chats cannot be served")
        self._check_kept(turns, text, rendering)
        return text

    def _try(self) -> None:
        """Find the form of contents with which the longest chat it takes is rendered in full."""
        rendered = False
        for roles in _CHATS:
            turns = [ChatTurn(role, f"{number}{_SENTINEL}") for number, role in enumerate(roles)]
            for in_parts in _subsets(roles):
                try:
                    text = self._apply(turns, in_parts, _OPEN)
                except Exception as error:
                    log.debug("the chat template refuses a chat that it is tried with", why=str(error))
                    continue
                rendered = True
                if all(_holds(text, turn.content) for turn in turns):
                    # A role that was not rendered here most likely takes the form that users' messages take.
                    absent = _ROLES.difference(roles)
                    self._in_parts = in_parts | absent if "user" in in_parts else in_parts
                    # Many templates drop the thoughts of earlier answers, and some answers are nothing else.
                    self._looked_for = _ROLES - {"assistant"} if "assistant" in roles else _ROLES
                    self.example = text
                    return
        self._loses = rendered
        if rendered:
            log.warning("the chat template shows no message's text; chats are refused")

    def _check_kept(self, turns: Sequence[ChatTurn], text: str, rendering: Rendering) -> None:
        place = switches = 0
        for index, turn in enumerate(turns):
            words = _WORDS.findall(turn.content[-_END_CHARACTERS:])
            if turn.role not in self._looked_for or not words:
                continue
            word = max(words, key=len)
            # Most templates keep the order of messages; then one search through the text is enough.
            found = text.find(word, place)
            found = text.find(word) if found < 0 else found
            if found >= 0:
                place = found
            elif switches < _MOST_SWITCHES and self._is_switch(turns, index, text, rendering):
                switches += 1
            else:
                raise _refused(f"the model's chat template leaves out the text of messages[{index}]")

    def _is_switch(self, turns: Sequence[ChatTurn], index: int, text: str, rendering: Rendering) -> bool:
        """Whether the rendering depends on this message: some templates read a word in it as a command."""
        other = [*turns[:index], ChatTurn(turns[index].role, _SENTINEL), *turns[index + 1 :]]
        try:
            return self._apply(other, self._in_parts, rendering) != text
        except Exception:
            return True

    def _apply(self, turns: Sequence[ChatTurn], in_parts: frozenset[str], rendering: Rendering) -> str:
        messages = [
            {
                "role": turn.role,
                "content": [{"type": "text", "text": turn.content}]
                if turn.role in in_parts
                else turn.content,
            }
            for turn in turns
        ]
        return str(
            self._tokenizer.apply_chat_template(
                messages,
                tokenize=False,
                add_generation_prompt=rendering.begin_answer,
                continue_final_message=rendering.continue_last,
                **rendering.variables,
            )
        )


def _size(value: Any) -> int:
    """Characters of all strings, and the number of all other values, of a JSON value."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, Mapping):
        return sum(len(name) + _size(each) for name, each in value.items())
    return 1 + (sum(map(_size, value)) if isinstance(value, list) else 0)


def _mapped(value: Any, change: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {name: _mapped(each, change) for name, each in value.items()}
    return [_mapped(each, change) for each in value] if isinstance(value, list) else value


def _subsets(roles: Sequence[str]) -> Iterator[frozenset[str]]:
    """Subsets of the roles, smaller ones first: strings are tried before parts."""
    names = sorted(set(roles))
    for count in range(len(names) + 1):
        for chosen in combinations(names, count):
            yield frozenset(chosen)


def _holds(text: str, content: str) -> bool:
    """Whether the content is rendered as text, and not as the printed list of parts."""
    return content in text and f"'text': '{content}'" not in text and f'"text": "{content}"' not in text


def _refused(why: str) -> RequestError:
    return RequestError(invalid("invalid_value"), why)
