"""Tool calls are found in a model's text however it is cut, and nothing of the text is lost."""

from __future__ import annotations

import re
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.parts import CallArguments, CallBegan, Part, Said, joined
from gateway.tools.formats import FORMATS, format_of
from gateway.tools.parser import ToolParser

NAMES = ("get_weather", "now")
ROME = '{"city": "Rome", "note": "a } \\" {"}'
CALL = f'{{"name": "get_weather", "arguments": {ROME}}}'
NOW = '{"name": "now", "arguments": {}}'
TWO = [CallBegan(0, "get_weather"), CallArguments(0, ROME), CallBegan(1, "now"), CallArguments(1, "{}")]


def parse(form: str, pieces: Iterable[str], most_calls: int | None = None) -> list[Part]:
    parser = ToolParser(FORMATS[form], NAMES, most_calls=most_calls)
    return joined([*(part for piece in pieces for part in parser.push(piece)), *parser.flush()])


@pytest.mark.parametrize(
    ("form", "text"),
    [
        ("hermes", f"<tool_call>\n{CALL}\n</tool_call>\n<tool_call>\n{NOW}\n</tool_call>\n"),
        ("hermes", f'<tool_call>{CALL}<tool_call>{{"name":"now"}}'),
        ("hermes", f'<tool_call>{{"arguments": {ROME}, "name": "get_weather"}}</tool_call><tool_call>{NOW}'),
        ("llama3", f'{CALL.replace("arguments", "parameters")}; {{"type": "function", "name": "now"}}'),
        ("llama3", f"<|python_tag|>{CALL}; {NOW}"),
        ("mistral", f"[TOOL_CALLS] [{CALL}, {NOW}]"),
        ("mistral", f"[TOOL_CALLS]get_weather[CALL_ID]1a2[ARGS]{ROME}[TOOL_CALLS]now{{}}"),
        ("json", f"[{CALL}, {NOW}]"),
        ("json", f"{CALL}\n{NOW}"),
        ("json", f"```json\n[{CALL}, {NOW}]\n```"),
    ],
)
def test_each_form_of_calls_is_read(form: str, text: str) -> None:
    assert parse(form, [text]) == TWO


@pytest.mark.parametrize(
    ("form", "text", "content"),
    [
        ("hermes", f"Let me see. \n<tool_call>{CALL}</tool_call>\n Done. ", "Let me see.\n Done."),
        ("mistral", f"Let me see. [TOOL_CALLS][{CALL}]", "Let me see."),
        ("llama3", f"Let me see. <|python_tag|>{CALL}", "Let me see."),
        ("json", f"Let me see. ```json\n{CALL}```", "Let me see."),
    ],
)
def test_text_around_calls_is_content(form: str, text: str, content: str) -> None:
    parts = parse(form, [text])
    assert "".join(part.text for part in parts if isinstance(part, Said)) == content
    assert [part for part in parts if not isinstance(part, Said)] == TWO[:2]


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize(
    "text",
    [
        "",
        "plain text, { and } and <tool and [TOOL and ``` and ```json in it ",
        '{"answer": 42}',
        '[{"answer": 42}]',
        "<tool_call>no object</tool_call>",
        '<tool_call>{"name": "unknown", "arguments": {}}</tool_call>',
        '<tool_call>{"name": "now", "arguments": 5}</tool_call>',
        '<tool_call>{"name": 5, "arguments": {}}',
        '<tool_call>{"name": "now"',
        '[TOOL_CALLS] [{"name": "unknown", "arguments": {}}]',
        "[TOOL_CALLS]unknown{}",
        '<|python_tag|>print("hello")',
        '{"name": "unknown", "parameters": {}}',
    ],
)
def test_what_is_no_call_of_a_tool_is_content_as_it_came(form: str, text: str) -> None:
    assert parse(form, [text]) == ([Said(text)] if text else [])


def test_a_call_that_is_cut_off_is_told_as_far_as_it_came() -> None:
    assert parse("hermes", ['<tool_call>{"name": "get_weather", "arguments": {"city": "Ro']) == [
        CallBegan(0, "get_weather"),
        CallArguments(0, '{"city": "Ro'),
    ]


def test_arguments_come_as_they_are_written() -> None:
    parser = ToolParser(FORMATS["hermes"], NAMES)
    assert parser.push('<tool_call>{"name": "get_weather", "arguments": ') == []
    assert parser.push('{"ci') == [CallBegan(0, "get_weather"), CallArguments(0, '{"ci')]
    assert parser.push('ty": 1') == [CallArguments(0, 'ty": 1')]
    assert parser.push("}}</tool_") == [CallArguments(0, "}")]
    assert parser.push("call>") == parser.flush() == []


@pytest.mark.parametrize("form", ["hermes", "mistral", "json"])
def test_more_calls_than_wanted_are_dropped(form: str) -> None:
    texts = {
        "hermes": f"<tool_call>{CALL}</tool_call><tool_call>{NOW}</tool_call>",
        "mistral": f"[TOOL_CALLS][{CALL}, {NOW}]",
        "json": f"[{CALL}, {NOW}]",
    }
    assert parse(form, [texts[form]], most_calls=1) == TWO[:2]


BITS = st.sampled_from(
    [
        *("<tool_call>", "</tool_call>", "[TOOL_CALLS]", "<|python_tag|>", "```json", "```", "[ARGS]"),
        *('"name"', '"arguments"', '"parameters"', '"id"', ":", ",", ";", "{", "}", "[", "]", '"', "\\"),
        *(f'{{"name": "{name}", "arguments": {{' for name in NAMES),
        *(f'"{name}"' for name in NAMES),
        *(CALL, NOW, " ", "\n", "<", "[", "`", "ab", "5", "é"),
    ]
)
TEXTS = st.lists(BITS, max_size=24).map("".join)


@given(form=st.sampled_from(sorted(FORMATS)), text=TEXTS, data=st.data())
def test_how_a_text_is_cut_changes_nothing_at_any_place_in_it(
    form: str, text: str, data: st.DataObject
) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=6)))
    one_by_one, cut = ToolParser(FORMATS[form], NAMES), ToolParser(FORMATS[form], NAMES)
    singly: list[Part] = []
    told: list[Part] = []
    for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True):
        singly += [part for char in text[start:end] for part in one_by_one.push(char)]
        told += cut.push(text[start:end])
        assert joined(singly) == joined(told)
    assert one_by_one.flush() == cut.flush()


@given(form=st.sampled_from(sorted(FORMATS)), bits=st.lists(BITS, max_size=24))
def test_no_word_is_lost(form: str, bits: list[str]) -> None:
    # Words that are in no form of calls, so that each must be told.
    text = "".join(f"{bit}w{number}w" for number, bit in enumerate(bits))
    told = "".join(part.name if isinstance(part, CallBegan) else part.text for part in parse(form, [text]))
    assert re.findall(r"w\d+w", told) == re.findall(r"w\d+w", text)


@pytest.mark.parametrize(
    ("template", "form"),
    [
        ("{{ '<tool_call>' }}", "hermes"),
        ("[TOOL_CALLS]", "mistral"),
        ("<|python_tag|>", "llama3"),
        ('{% if message.role == \'ipython\' %}{"name": x, "parameters": y}', "llama3"),
        ("{{ message.content }}", "json"),
    ],
)
def test_the_form_follows_from_the_template(template: str, form: str) -> None:
    assert format_of(template) == form
