"""Reasoning, content and calls are told apart however the text is cut; a client can come back anywhere."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.events import Chunk, Mark, Untold
from gateway.parts import CallArguments, CallBegan, Part, Said, Thought, joined
from gateway.reading import Reader, Reading, call_id
from gateway.reasoning import STYLES, is_open, style_of

CALL = '<tool_call>{"name": "now", "arguments": {"zone": "UTC"}}</tool_call>'
CALLED = [CallBegan(0, "now"), CallArguments(0, '{"zone": "UTC"}')]
BOTH = Reading("think", tool_format="hermes", tools=("now",))


def read(reading: Reading, pieces: Iterable[str]) -> list[Part]:
    reader = Reader(reading)
    return joined([*(part for piece in pieces for part in reader.push(piece)), *reader.flush()])


@pytest.mark.parametrize("opened", [False, True])
@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("<think>\nhm, <b>?\n</think>\n\nYes. ", [Thought("hm, <b>?"), Said("Yes. ")]),
        (" \n<think>hm</think>Yes", [Thought("hm"), Said("Yes")]),
        ("<think>\n\n</think>\n\nYes", [Said("Yes")]),
        ("<think> hm </th", [Thought("hm </th")]),
        ("<think>hm</think>\n", [Thought("hm")]),
        (f"<think>hm {CALL}</think>\n{CALL}", [Thought(f"hm {CALL}"), *CALLED]),
    ],
)
def test_reasoning_is_told_from_what_follows(text: str, parts: list[Part], opened: bool) -> None:
    reading = Reading("think", opened=opened, tool_format="hermes", tools=("now",))
    assert read(reading, [text]) == read(reading, text) == parts


def test_a_prompt_may_have_opened_the_reasoning() -> None:
    assert read(Reading("think", opened=True), ["hm</think>\nYes"]) == [Thought("hm"), Said("Yes")]


@pytest.mark.parametrize("text", ["Yes <think>no</think>", " <thin ice", "  ", "<thi", ""])
def test_text_that_begins_without_reasoning_stays_as_it_is(text: str) -> None:
    assert read(Reading("think"), text) == ([Said(text)] if text else [])


def test_reasoning_may_be_left_out() -> None:
    reading = Reading("think", tells_thoughts=False)
    assert read(reading, ["<think>hm</think>Yes"]) == [Said("Yes")]


def test_ids_of_calls_are_the_same_at_each_gateway() -> None:
    assert call_id("s", 0) == call_id("s", 0)
    assert len({call_id("s", 0), call_id("s", 1), call_id("t", 0)}) == 3


def test_the_style_follows_from_template_or_vocabulary() -> None:
    assert style_of("{{ x.split('</think>') }}", []) == "think"
    assert style_of("", ["[THINK]", "[/THINK]"]) == "magistral"
    assert style_of("{{ x }}", ["<think>"]) == ""
    assert is_open("<think></think>a<think>\n", STYLES["think"])
    assert not is_open("<think>\n\n</think>\n", STYLES["think"])


BITS = ["<think>", "</think>", "<tool_call>", "</tool_call>", CALL, " ", "\n", "<", "ab", '{"name": "now"']


@given(text=st.lists(st.sampled_from(BITS), max_size=10).map("".join), data=st.data())
def test_a_client_that_comes_back_is_told_the_rest_and_nothing_twice(text: str, data: st.DataObject) -> None:
    def told(cuts: list[int], mark: Mark | None = None) -> tuple[list[Part], list[tuple[int, int]]]:
        """All parts; after each chunk how many parts' characters were told, and the mark's characters."""
        untold = Untold(mark, Reader(BOTH))
        parts: list[Part] = []
        marks = [(0, untold.characters)]
        for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True):
            new = untold.of(Chunk(text[start:end], 0, (), 0, True))
            parts += new.parts if new else ()
            marks.append((len(parts), untold.characters))
        if (rest := untold.rest()) is not None:
            parts += rest.parts
            marks.append((len(parts), untold.characters))
        return parts, marks

    places = st.lists(st.integers(0, len(text)), max_size=5).map(sorted)
    first, marks = told(data.draw(places))
    for count, characters in marks:
        again, _ = told(data.draw(places), Mark("s", 0, characters))
        assert joined([*first[:count], *again]) == read(BOTH, [text])
