"""What a grammar of calls allows, the reader of the same form reads as calls, and nothing else is allowed."""

from __future__ import annotations

import json
from typing import Any

import pytest
from llguidance import LLMatcher, LLTokenizer

from gateway.parts import CallArguments, CallBegan, Thought
from gateway.reading import Reader, Reading
from gateway.reasoning import STYLES
from gateway.tools.formats import FORMATS
from gateway.tools.grammar import calls_grammar

TOOLS: list[Any] = [
    {
        "type": "function",
        "function": {
            "name": "go",
            "parameters": {
                "type": "object",
                "properties": {"to": {"type": "string"}},
                "required": ["to"],
                "additionalProperties": False,
            },
        },
    },
    {"type": "function", "function": {"name": "now"}},
]
ARGUMENTS = '{"to": "Rome"}'
TEXTS = {
    "hermes": '<tool_call>\n{"name": "go", "arguments": {"to": "Rome"}}\n</tool_call>\n'
    '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>',
    "llama3": '{"name": "go", "parameters": {"to": "Rome"}}; {"name": "now", "parameters": {}}',
    "mistral": '[TOOL_CALLS] [{"name": "go", "arguments": {"to": "Rome"}}, {"name": "now", "arguments": {}}]',
    "json": '[{"name": "go", "arguments": {"to": "Rome"}}, {"name": "now", "arguments": {}}]',
}


class _Bytes:
    """A tokenizer of bytes as the library wants it."""

    tokens = (*(bytes([byte]) for byte in range(256)), b"")
    eos_token_id = 256
    bos_token_id = None
    special_token_ids = (256,)
    is_tokenizer_wrapper = True

    def __call__(self, text: str) -> list[int]:
        return list(text.encode())


BYTES = LLTokenizer(_Bytes())  # type: ignore[arg-type]


def is_allowed(
    form: str, text: str, thinking: str = "", *, opened: bool = False, most: int | None = None
) -> bool:
    grammar = calls_grammar(form, TOOLS, most_calls=most, thinking=STYLES.get(thinking), opened=opened)
    matcher = LLMatcher(BYTES, LLMatcher.grammar_from_lark(grammar), log_level=0)
    assert not matcher.get_error()
    ids = list(text.encode())
    return matcher.try_consume_tokens(ids) == len(ids) and matcher.is_accepting()


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("form", FORMATS)
def test_calls_behind_reasoning_or_without_are_allowed_and_read(form: str, style: str) -> None:
    marks, text = STYLES[style], TEXTS[form]
    calls = [CallBegan(0, "go"), CallArguments(0, ARGUMENTS), CallBegan(1, "now"), CallArguments(1, "{}")]
    assert is_allowed(form, text)
    for thought, opened in (
        (f"{marks.opening}hm, a <b> [c] /{marks.closing}\n\n", False),
        (f"hm{marks.closing}", True),
    ):
        assert is_allowed(form, thought + text, style, opened=opened)
        reader = Reader(Reading(style, opened, tool_format=form, tools=("go", "now")))
        parts = [*reader.push(thought + text), *reader.flush()]
        assert isinstance(parts[0], Thought)
        assert parts[1:] == calls


@pytest.mark.parametrize("form", FORMATS)
def test_nothing_but_calls_of_the_tools_is_allowed(form: str) -> None:
    text = TEXTS[form]
    assert not is_allowed(form, "")
    assert not is_allowed(form, "hello")
    assert not is_allowed(form, text + " hello")
    assert not is_allowed(form, text.replace('"go"', '"fly"'))
    assert not is_allowed(form, text.replace('"Rome"', "5"))
    assert not is_allowed(form, text.replace('"to"', '"from"'))
    assert not is_allowed(form, text, most=1)
    assert not is_allowed(form, text, "think", opened=True)


def test_a_tools_name_and_schema_are_quoted() -> None:
    odd: Any = {
        "type": "function",
        "function": {"name": "a.b-c", "parameters": {"enum": [{'"': "\\\n%json"}]}},
    }
    grammar = calls_grammar("json", [odd], most_calls=1, thinking=None, opened=False)
    matcher = LLMatcher(BYTES, LLMatcher.grammar_from_lark(grammar), log_level=0)
    assert not matcher.get_error()
    text = f'[{{"name": "a.b-c", "arguments": {json.dumps({chr(34): chr(92) + chr(10) + "%json"})}}}]'
    assert matcher.try_consume_tokens(list(text.encode())) == len(text)
