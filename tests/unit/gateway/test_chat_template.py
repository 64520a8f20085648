"""Whatever form a template takes, the model sees what every message says, or the client is told."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from gateway.chat_template import ChatTemplate, ChatTurn
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
    return ChatTemplate(tokenizer).render(turns)


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
