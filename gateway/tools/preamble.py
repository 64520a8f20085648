"""How models are told of tools whose chat template knows none: in the system message, with a JSON form."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from gateway.chat import Chat, ChatTurn, Tool

_TEXT = """\
You can call these functions. Each line describes one in JSON:
{functions}

To call one, answer with nothing but a JSON object {{"name": NAME, "arguments": {{...}}}}; to call several, \
with a list of such objects. Otherwise answer in plain text."""


def in_words(chat: Chat, *, tools: bool, calls: bool, results: bool) -> Chat:
    """The chat with what the template does not show said in messages' texts.

    A template may show `tools`, an assistant's `calls`, and the `results` in tools' messages.
    """
    turns = list(chat.turns)
    if not results:
        turns = _with_results_said(turns)
    if not calls:
        turns = [_with_calls_said(turn) for turn in turns]
    if tools or not chat.tools:
        return Chat(turns, chat.tools)
    return Chat(_with_preamble(turns, chat.tools))


def _with_preamble(turns: list[ChatTurn], tools: Sequence[Tool]) -> list[ChatTurn]:
    functions = "\n".join(_json(tool["function"]) for tool in tools)
    text = _TEXT.format(functions=functions)
    if turns and turns[0].role == "system":
        return [ChatTurn("system", f"{turns[0].content}\n\n{text}"), *turns[1:]]
    return [ChatTurn("system", text), *turns]


def _with_calls_said(turn: ChatTurn) -> ChatTurn:
    if not turn.tool_calls:
        return turn
    said = [_json({"name": call.name, "arguments": call.arguments}) for call in turn.tool_calls]
    calls = said[0] if len(said) == 1 else f"[{', '.join(said)}]"
    content = f"{turn.content}\n{calls}" if turn.content else calls
    return ChatTurn(turn.role, content, reasoning=turn.reasoning)


def _with_results_said(turns: list[ChatTurn]) -> list[ChatTurn]:
    """Results as a user's messages; neighbours are one message, as many templates want turns in turn."""
    names = {call.id: call.name for turn in turns for call in turn.tool_calls}
    told: list[ChatTurn] = []
    behind = False
    for turn in turns:
        if turn.role != "tool":
            told.append(turn)
            behind = False
            continue
        name = turn.name or names.get(turn.tool_call_id, "")
        text = _json({"tool_response": {"name": name, "content": turn.content}})
        if behind:
            told[-1] = ChatTurn("user", f"{told[-1].content}\n{text}")
        else:
            told.append(ChatTurn("user", text))
        behind = True
    return told


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
