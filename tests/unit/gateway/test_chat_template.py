"""Whatever form a template takes, the model sees what every message says, or the client is told."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from gateway.chat import Chat, ChatTurn, ToolCall
from gateway.chat_template import ChatTemplate, Rendering
from gateway.errors import RequestError
from tests.tiny_tokenizers import byte_level

STRINGS = "{% for m in messages %}{{ m.role }}: {{ m.content | trim }}{{ '\\n' }}{% endfor %}"
PARTS = (
    "{% for m in messages %}{{ m.role }}: {% for part in m.content %}"
    "{% if part.type == 'image' %}<image>{% elif part.type == 'text' %}{{ part.text }}{% endif %}"
    "{% endfor %}{{ '\\n' }}{% endfor %}"
)
INDEXED = "{% for m in messages %}{{ m.role }}: {{ m.content[0]['text'] }}{{ '\\n' }}{% endfor %}"
BOTH = (
    "{% for m in messages %}{{ m.role }}: {% if m.content is string %}{{ m.content }}{% else %}"
    "[{% for part in m.content %}{{ part.text }}{% endfor %}]{% endif %}{{ '\\n' }}{% endfor %}"
)
# The system message and answers as strings, the user's in parts.
MIXED = (
    "{% for m in messages %}{{ m.role }}: {% if m.role == 'user' %}{% for part in m.content %}{{ part.text }}"
    "{% endfor %}{% else %}{{ m.content }}{% endif %}{{ '\\n' }}{% endfor %}"
)
NO_LONE_USER = (
    "{% if messages[0].role != 'system' %}{{ raise_exception('begin with a system message') }}{% endif %}"
    + PARTS
)
NO_SYSTEM = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    + PARTS
)
DROPS_SYSTEM = (
    "{% for m in messages if m.role != 'system' %}{{ m.role }}: {{ m.content }}{{ '\\n' }}{% endfor %}"
)
DROPS_THOUGHTS = (
    "{% for m in messages %}{{ m.role }}: {{ m.content.split('</think>')[-1] if m.role == 'assistant' "
    "else m.content }}{{ '\\n' }}{% endfor %}"
)
DROPS_ANSWERS = (
    "{% for m in messages if m.role != 'assistant' %}{{ m.role }}: {{ m.content }}{{ '\\n' }}{% endfor %}"
)
LOSES = "{% for m in messages %}{{ m.role }}: {{ m.text }}{{ '\\n' }}{% endfor %}"
TALK = (ChatTurn("system", "be brief"), ChatTurn("user", "how many?"))


def render(template: str | None, turns: Sequence[ChatTurn]) -> str:
    tokenizer = byte_level(add_prefix_space=False)
    tokenizer.chat_template = template
    return ChatTemplate(tokenizer).render(Chat(turns))


@pytest.mark.parametrize(
    "template", [STRINGS, PARTS, INDEXED, BOTH, MIXED, NO_LONE_USER], ids=lambda each: each[-90:-70]
)
def test_a_template_gets_messages_in_the_form_that_it_takes(template: str) -> None:
    assert render(template, TALK) == "system: be brief\nuser: how many?\n"


def test_a_template_without_system_messages_gets_parts_too() -> None:
    assert render(NO_SYSTEM, TALK[1:]) == "user: how many?\n"


@pytest.mark.parametrize(
    ("template", "why"),
    [
        (NO_SYSTEM, "System role not supported"),
        ("{{ messages[0].content.nothing.there }}", "has no attribute 'nothing'"),
        ("{{ 1 + messages[0].content }}", "unsupported operand type"),
        ("{{ messages[9].content + 'x' }}", "has no element 9"),
        ("{{ 1 // 0 }}", "by zero"),
        ("{% macro m(x) %}{{ m(x) }}{% endmacro %}{{ m(1) }}", "recursion"),
        (None, "chat_template is not set"),
    ],
)
def test_what_a_template_raises_is_told_in_its_words(template: str | None, why: str) -> None:
    with pytest.raises(RequestError, match=why) as caught:
        render(template, TALK)
    assert (caught.value.kind.status, caught.value.kind.code) == (400, "invalid_value")


@pytest.mark.parametrize(
    ("template", "turns", "why"),
    [
        (LOSES, TALK, "shows no message's text"),
        (DROPS_SYSTEM, TALK, r"leaves out the text of messages\[0\]"),
        (DROPS_ANSWERS, (*TALK, ChatTurn("assistant", "seven"), TALK[1]), r"messages\[2\]"),
        ("{{ messages[-1].content }}", (TALK[1], ChatTurn("user", "and now?")), r"messages\[0\]"),
    ],
)
def test_no_text_is_lost_in_silence(template: str, turns: Sequence[ChatTurn], why: str) -> None:
    with pytest.raises(RequestError, match=why) as caught:
        render(template, turns)
    assert caught.value.kind.status == 400


def test_a_template_may_leave_out_what_an_answer_thought() -> None:
    turns = (*TALK, ChatTurn("assistant", "<think>hmm</think>"), ChatTurn("user", "well?"))
    assert render(DROPS_THOUGHTS, turns).endswith("assistant: \nuser: well?\n")


@pytest.mark.parametrize(
    "content", ["", " ", "?!", "\N{WAVING HAND SIGN}", "a\n", "\t'quoted' \"text\"", "東京"]
)
def test_any_content_is_found_again(content: str) -> None:
    json = "{% for m in messages %}{{ m | tojson }}{{ '\\n' }}{% endfor %}"
    for template in (STRINGS, PARTS, json):
        render(template, [ChatTurn("user", content)])


def test_a_word_that_a_template_takes_as_an_instruction_is_not_lost() -> None:
    """As SmolLM3's `/no_think` in a system message."""
    template = (
        "{% set said = messages[0].content %}{{ 'brief' if '/no_think' in said }}"
        "{{ said.replace('/no_think', '') }}{% for m in messages[1:] %}: {{ m.content }}{% endfor %}"
    )
    assert render(template, [ChatTurn("system", "/no_think"), TALK[1]]) == "brief: how many?"


def rendered(template: str, rendering: Rendering, *turns: ChatTurn) -> str:
    tokenizer = byte_level(add_prefix_space=False)
    tokenizer.chat_template = template
    rendering.check()
    return ChatTemplate(tokenizer).render(Chat(turns), rendering)


ANSWERING = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }};{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}{{ mood | default('') }}"
)


def test_an_answer_is_begun_or_a_message_is_gone_on_with() -> None:
    said = ChatTurn("user", "hi"), ChatTurn("assistant", "well, I")
    assert rendered(ANSWERING, Rendering(), *said).endswith("well, I;assistant:")
    assert rendered(ANSWERING, Rendering(begin_answer=False), *said).endswith("well, I;")
    assert rendered(ANSWERING, Rendering(False, continue_last=True), *said).endswith("well, I")


def test_a_template_has_variables_of_its_own() -> None:
    assert rendered(ANSWERING, Rendering(variables={"mood": "good"}), *TALK).endswith("assistant:good")


@pytest.mark.parametrize(
    ("rendering", "field"),
    [
        (Rendering(continue_last=True), "continue_final_message"),
        (Rendering(variables={"messages": []}), "chat_template_kwargs.messages"),
        (Rendering(variables={"chat_template": "x"}), "chat_template_kwargs.chat_template"),
        (Rendering(variables={"tokenize": True}), "chat_template_kwargs.tokenize"),
        (Rendering(variables={"a": ["x" * 4000, {"b": "y" * 100}]}), "chat_template_kwargs"),
        (Rendering(variables={"a": [0] * 4096}), "chat_template_kwargs"),
    ],
)
def test_what_no_template_takes_is_refused_by_name(rendering: Rendering, field: str) -> None:
    with pytest.raises(RequestError) as caught:
        rendering.check()
    assert (caught.value.kind.status, caught.value.param) == (400, field)


CALL = ToolCall.of("call_0123456789", "now", '{"zone": "UTC"}')
CALLED = [
    ChatTurn("user", "what time is it?"),
    ChatTurn("assistant", "", tool_calls=(CALL,)),
    ChatTurn("tool", "noon", tool_call_id=CALL.id),
]
NOW = {"type": "function", "function": {"name": "now", "parameters": {"type": "object"}}}
# As Mistral's, in short: the ids of calls have nine characters.
SHORT_IDS = (
    "{% for tool in tools or [] %}{{ tool.function.name }};{% endfor %}"
    "{% for m in messages %}{% for call in m.tool_calls or [] %}"
    "{% if call.id | length != 9 %}{{ raise_exception('ids have 9 characters') }}{% endif %}"
    "[{{ call.id }} {{ call.function.name }} {{ call.function.arguments | tojson }}]{% endfor %}"
    "{{ m.role }} {{ m.tool_call_id }}: {{ m.content }}\n{% endfor %}"
)


def test_ids_of_calls_fit_the_template_and_one_another() -> None:
    tokenizer = byte_level(add_prefix_space=False)
    tokenizer.chat_template = SHORT_IDS
    template = ChatTemplate(tokenizer)
    assert template.shows_tools
    text = template.render(Chat(CALLED, [NOW]))
    assert text.startswith("now;user")
    call, result = text.split("[")[1].split(" ")[0], text.split("tool ")[1].split(":")[0]
    assert call == result != ""
    assert '{"zone": "UTC"}' in text


def test_what_a_template_does_not_show_of_tools_is_said_in_texts() -> None:
    text = ChatTemplate(_with(STRINGS)).render(Chat([*TALK[:1], *CALLED], [NOW]))
    assert text.startswith("system: be brief\n\nYou can call these functions.")
    assert '{"name": "now", "parameters": {"type": "object"}}' in text
    assert 'assistant: {"name": "now", "arguments": {"zone": "UTC"}}\n' in text
    assert 'user: {"tool_response": {"name": "now", "content": "noon"}}\n' in text


@pytest.mark.parametrize(
    ("source", "effort", "variables"),
    [
        ("{{ reasoning_effort }}", "low", {"reasoning_effort": "low"}),
        ("{% if enable_thinking %}{% endif %}", "none", {"enable_thinking": False}),
        ("{% if enable_thinking %}{% endif %}", "high", {"enable_thinking": True}),
        ("", "none", {}),
    ],
)
def test_a_template_is_told_how_much_to_reason(source: str, effort: str, variables: dict[str, Any]) -> None:
    assert ChatTemplate(_with(STRINGS + source)).variables_of(effort) == variables


def test_a_template_that_does_not_ask_how_much_to_reason_refuses() -> None:
    with pytest.raises(RequestError) as caught:
        ChatTemplate(_with(STRINGS)).variables_of("low")
    assert caught.value.param == "reasoning_effort"


def _with(template: str) -> Any:
    tokenizer = byte_level(add_prefix_space=False)
    tokenizer.chat_template = template
    return tokenizer
