"""Renders messages with the model's chat template, and makes sure that no message's text is lost."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from hashlib import sha256
from itertools import combinations
from typing import Any

import transformers

from gateway.chat import Chat, ChatTurn, Tool, ToolCall, mapped
from gateway.errors import UNSUPPORTED, RequestError, invalid
from gateway.reasoning import Thinking, is_open
from gateway.tools.formats import format_of
from gateway.tools.preamble import in_words
from paceline.service import telemetry

log = telemetry.logger(__name__)

# Chats to try a template with. Some templates require a system message or an answer, others refuse them.
_CHATS = (
    ("system", "user", "assistant", "user"),
    ("user", "assistant", "user"),
    ("system", "user"),
    ("user",),
)
_ROLES = frozenset({"system", "user", "assistant", "tool"})
_SENTINEL = "pacelinesentinel"
_TOOL: Tool = {
    "type": "function",
    "function": {
        "name": f"tool{_SENTINEL}",
        "description": _SENTINEL,
        "parameters": {"type": "object", "properties": {_SENTINEL: {"type": "string"}}},
    },
}
# Length of the ids of calls where a template takes no longer ones: Mistral's.
_SHORT_ID = 9
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
        return replace(self, variables=mapped(self.variables, change)) if self.variables else self


AS_USUAL = Rendering()
# Without the start of an answer.
_OPEN = Rendering(begin_answer=False)


class ChatTemplate:
    """A tokenizer's chat template.

    Most templates take a message's content as a string; some, of vision models, take a list of parts. Which
    one is found out once, by rendering: a template that expects parts drops a string without an error. So is
    what it shows of tools; what it does not show is said in messages' texts.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        # The template's own text; empty if there is none.
        self.source = ""
        with suppress(ValueError):
            self.source = str(tokenizer.get_chat_template(tools=[_TOOL]))
        # Roles whose content is passed as parts.
        self._in_parts: frozenset[str] = frozenset()
        # Rendered chats without the start of their answers. They hold the tokens that delimit turns.
        self.example = ""
        self.shows_tools = self._shows_calls = self._shows_results = self._short_ids = False
        self._loses = False
        # Roles whose text must be found in each rendering.
        self._looked_for = _ROLES
        self._try()
        self._try_tools()

    def variables_of(self, effort: str) -> dict[str, Any]:
        """The template's variables that ask for so much reasoning: "none", "low" and so on.

        Raises `RequestError` if it has none, and reasoning is asked for.
        """
        if "reasoning_effort" in self.source:
            return {"reasoning_effort": effort}
        if "enable_thinking" in self.source:
            return {"enable_thinking": effort != "none"}
        if effort == "none":
            return {}
        raise RequestError(
            UNSUPPORTED, "the model's chat template does not ask how much to reason", "reasoning_effort"
        )

    @property
    def tool_format(self) -> str:
        """The name of the form in which a model of this template writes calls."""
        return format_of(self.source) if self.shows_tools else "json"

    def opens(self, style: Thinking, chat: Chat, rendering: Rendering) -> bool:
        """Whether an answer to the chat begins within reasoning."""
        turns = [ChatTurn("user", _SENTINEL)]
        if rendering.continue_last:
            turns.append(chat.turns[-1])
        try:
            return is_open(self._text(Chat(turns), rendering), style)
        except Exception:
            # It will say why when the chat itself is rendered.
            return False

    def render(self, chat: Chat, rendering: Rendering = AS_USUAL) -> str:
        """The text of a chat up to the start of its answer.

        Raises `RequestError` with the template's own message, or if the template drops a message's text.
        """
        try:
            text = self._text(chat, rendering)
        except Exception as error:
            # A template is a program: it may raise its own messages, and any other exception.
            words = str(error)[:_MOST_CHARACTERS]
            raise _refused(f"the model's chat template refuses this: {words}") from error
        if self._loses:
            raise _refused("the model's chat template shows no message's text: chats cannot be served")
        self._check_kept(chat, text, rendering)
        return text

    def _text(self, chat: Chat, rendering: Rendering) -> str:
        shown = in_words(chat, tools=self.shows_tools, calls=self._shows_calls, results=self._shows_results)
        return self._apply(shown, self._in_parts, rendering)

    def _try(self) -> None:
        """Find the form of contents with which the longest chat it takes is rendered in full."""
        rendered = False
        for roles in _CHATS:
            turns = [ChatTurn(role, f"{number}{_SENTINEL}") for number, role in enumerate(roles)]
            for in_parts in _subsets(roles):
                try:
                    text = self._apply(Chat(turns), in_parts, _OPEN)
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

    def _try_tools(self) -> None:
        """Find out what of tools it shows."""
        for self._short_ids in (False, True):
            asked = ChatTurn("user", f"user{_SENTINEL}")
            call = ToolCall(f"call_{_SENTINEL}", f"call{_SENTINEL}", {f"argument{_SENTINEL}": 1})
            called = ChatTurn("assistant", "", tool_calls=(call,))
            result = ChatTurn("tool", f"result{_SENTINEL}", name=call.name, tool_call_id=call.id)
            self.shows_tools = self._shows(Chat([asked], [_TOOL]), f"tool{_SENTINEL}")
            whole = Chat([asked, called, result])
            self._shows_calls = self._shows(whole, call.name, *call.arguments)
            self._shows_results = self._shows_calls and self._shows(whole, result.content)
            if self._shows_calls:
                return

    def _shows(self, chat: Chat, *texts: str) -> bool:
        try:
            text = self._apply(chat, self._in_parts, _OPEN)
        except Exception as error:
            log.debug("the chat template refuses a chat with tools", why=str(error))
            return False
        self.example += text
        return all(each in text for each in texts)

    def _check_kept(self, chat: Chat, text: str, rendering: Rendering) -> None:
        place = switches = 0
        for index, turn in enumerate(chat.turns):
            words = _WORDS.findall(turn.content[-_END_CHARACTERS:])
            if turn.role not in self._looked_for or not words:
                continue
            word = max(words, key=len)
            # Most templates keep the order of messages; then one search through the text is enough.
            found = text.find(word, place)
            found = text.find(word) if found < 0 else found
            if found >= 0:
                place = found
            elif switches < _MOST_SWITCHES and self._is_switch(chat, index, text, rendering):
                switches += 1
            else:
                raise _refused(f"the model's chat template leaves out the text of messages[{index}]")

    def _is_switch(self, chat: Chat, index: int, text: str, rendering: Rendering) -> bool:
        """Whether the rendering depends on this message: some templates read a word in it as a command."""
        turns = list(chat.turns)
        turns[index] = replace(turns[index], content=_SENTINEL)
        try:
            return self._text(replace(chat, turns=turns), rendering) != text
        except Exception:
            return True

    def _apply(self, chat: Chat, in_parts: frozenset[str], rendering: Rendering) -> str:
        return str(
            self._tokenizer.apply_chat_template(
                [self._message(turn, in_parts) for turn in chat.turns],
                tools=list(chat.tools) or None,
                tokenize=False,
                add_generation_prompt=rendering.begin_answer,
                continue_final_message=rendering.continue_last,
                **rendering.variables,
            )
        )

    def _message(self, turn: ChatTurn, in_parts: frozenset[str]) -> dict[str, Any]:
        """A message as templates take it: as in OpenAI's API, but arguments are values."""
        parts = [{"type": "text", "text": turn.content}]
        message: dict[str, Any] = {
            "role": turn.role,
            "content": parts if turn.role in in_parts else turn.content,
        }
        if turn.reasoning:
            message["reasoning_content"] = turn.reasoning
        if turn.tool_calls:
            message["tool_calls"] = [
                {
                    "id": self._call_id(call.id),
                    "type": "function",
                    "function": {"name": call.name, "arguments": call.arguments},
                }
                for call in turn.tool_calls
            ]
        if turn.role == "tool":
            message["tool_call_id"] = self._call_id(turn.tool_call_id)
            if turn.name is not None:
                message["name"] = turn.name
        return message

    def _call_id(self, given: str) -> str:
        if not self._short_ids or len(given) == _SHORT_ID:
            return given
        return sha256(given.encode(errors="surrogatepass")).hexdigest()[:_SHORT_ID]


def _size(value: Any) -> int:
    """Characters of all strings, and the number of all other values, of a JSON value."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, Mapping):
        return sum(len(name) + _size(each) for name, each in value.items())
    return 1 + (sum(map(_size, value)) if isinstance(value, list) else 0)


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
