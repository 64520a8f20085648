"""Messages to text by the model's chat template, in the form that it takes, with no message's text lost."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from gateway.errors import RequestError, invalid
from paceline.service import telemetry

log = telemetry.logger(__name__)

# Chats that templates are tried with; some want a system message or an answer, others take none.
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
# Each costs another rendering.
_MOST_SWITCHES = 3


@dataclass(frozen=True, slots=True)
class ChatTurn:
    """One message: role "system", "user" or "assistant", and its text."""

    role: str
    content: str


class ChatTemplate:
    """A tokenizer's chat template.

    Templates take a message's content as a string or, several of models that see, as a list of parts. Which
    one is seen here once, by rendering: a string that is iterated for its parts has none and vanishes.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        # Roles whose content is given as parts.
        self._in_parts: frozenset[str] = frozenset()
        # A chat without its answer's beginning: it holds the tokens that make turns.
        self.example = ""
        self._loses = False
        # Roles whose text is looked for in each rendering.
        self._looked_for = _ROLES
        self._try()

    def render(self, turns: Sequence[ChatTurn]) -> str:
        """The text of a chat up to its answer.

        Raises `RequestError` with the template's words, or where it leaves out what a message says.
        """
        try:
            text = self._apply(turns, self._in_parts)
        except Exception as error:
            # A template is a program: besides what it raises for the reader, it fails as programs do.
            words = str(error)[:_MOST_CHARACTERS]
            raise _refused(f"the model's chat template refuses this: {words}") from error
        if self._loses:
            raise _refused("the model's chat template shows no message's text: chats cannot be served")
        self._check_kept(turns, text)
        return text

    def _try(self) -> None:
        """Find the form by which all texts of the longest possible chat are in the rendering."""
        rendered = False
        for roles in _CHATS:
            turns = [ChatTurn(role, f"{number}{_SENTINEL}") for number, role in enumerate(roles)]
            for in_parts in _subsets(roles):
                try:
                    text = self._apply(turns, in_parts, begin_answer=False)
                except Exception as error:
                    log.debug("the chat template refuses a chat that it is tried with", why=str(error))
                    continue
                rendered = True
                if all(_holds(text, turn.content) for turn in turns):
                    # A role that it takes nothing of here is most likely taken as users' messages are.
                    absent = _ROLES.difference(roles)
                    self._in_parts = in_parts | absent if "user" in in_parts else in_parts
                    # Of earlier answers many templates leave out thoughts, and that is all of some.
                    self._looked_for = _ROLES - {"assistant"} if "assistant" in roles else _ROLES
                    self.example = text
                    return
        self._loses = rendered
        if rendered:
            log.warning("the chat template shows no message's text; chats are refused")

    def _check_kept(self, turns: Sequence[ChatTurn], text: str) -> None:
        place = switches = 0
        for index, turn in enumerate(turns):
            words = _WORDS.findall(turn.content[-_END_CHARACTERS:])
            if turn.role not in self._looked_for or not words:
                continue
            word = max(words, key=len)
            # Most templates keep the order, and then the whole text is searched once.
            found = text.find(word, place)
            found = text.find(word) if found < 0 else found
            if found >= 0:
                place = found
            elif switches < _MOST_SWITCHES and self._is_switch(turns, index, text):
                switches += 1
            else:
                raise _refused(f"the model's chat template leaves out the text of messages[{index}]")

    def _is_switch(self, turns: Sequence[ChatTurn], index: int, text: str) -> bool:
        """Whether another message there makes a difference: some templates take a word as an instruction."""
        other = [*turns[:index], ChatTurn(turns[index].role, _SENTINEL), *turns[index + 1 :]]
        try:
            return self._apply(other, self._in_parts) != text
        except Exception:
            return True

    def _apply(
        self, turns: Sequence[ChatTurn], in_parts: frozenset[str], *, begin_answer: bool = True
    ) -> str:
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
            self._tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=begin_answer)
        )


def _subsets(roles: Sequence[str]) -> Iterator[frozenset[str]]:
    """Of the roles, the smaller first: strings are tried before parts."""
    names = sorted(set(roles))
    for count in range(len(names) + 1):
        for chosen in combinations(names, count):
            yield frozenset(chosen)


def _holds(text: str, content: str) -> bool:
    """Whether the content is there as text, and not as the list of parts written out."""
    return content in text and f"'text': '{content}'" not in text and f'"text": "{content}"' not in text


def _refused(why: str) -> RequestError:
    return RequestError(invalid("invalid_value"), why)
