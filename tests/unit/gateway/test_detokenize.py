"""Text comes in whole characters, adds up to the whole, and never passes a stop string."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from gateway.detokenize import INCOMPLETE, Detokenizer, StopStrings, TokenTexts
from tests.tiny_tokenizers import KINDS

TEXTS = [
    "the quick brown fox",
    "Grüße, żółć, naïve — “quoted”…",
    "你好，世界。今日は良い天気です。안녕하세요",
    "مرحبا بالعالم שלום עולם नमस्ते दुनिया",
    "👩‍👩‍👧‍👦 family, 🇩🇪 flag, 👍🏽 skin, 🏴‍☠️ pirate 𝔘𝔫𝔦",
    "a\u0301 e\u0308 combining, \u200b zero width, tab\tnew\nline",
    "a real \N{REPLACEMENT CHARACTER} in the text, and one at its end \N{REPLACEMENT CHARACTER}",
    "\N{REPLACEMENT CHARACTER}" * 5,
]
CUTS = st.lists(st.integers(1, 5), max_size=60)


@pytest.fixture(scope="session")
def tokenizer(tiny_model: Path) -> Any:
    return AutoTokenizer.from_pretrained(tiny_model)


def cut(items: Any, sizes: list[int]) -> list[Any]:
    """The same in pieces of these sizes, then of one."""
    pieces, start = [], 0
    for size in sizes:
        pieces.append(items[start : start + size])
        start += size
    return [piece for piece in [*pieces, *(items[at : at + 1] for at in range(start, len(items)))] if piece]


def stream(tokenizer: Any, ids: list[int], sizes: list[int]) -> list[str]:
    detokenizer = Detokenizer(TokenTexts.of(tokenizer))
    chunks = [detokenizer.push(piece) for piece in cut(ids, sizes)]
    return [*chunks, detokenizer.flush()]


def whole(tokenizer: Any, ids: list[int]) -> str:
    return str(tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))


@given(ids=st.lists(st.integers(0, 511), max_size=60), sizes=CUTS)
def test_chunks_of_any_ids_add_up_to_the_whole_text(tokenizer: Any, ids: list[int], sizes: list[int]) -> None:
    assert "".join(stream(tokenizer, ids, sizes)) == whole(tokenizer, ids)


@given(ids=st.lists(st.integers(3, 258), max_size=60), sizes=CUTS)
@example(ids=[243, 257, 257, 243], sizes=[])
def test_chunks_of_raw_bytes_add_up_to_the_whole_text(
    tokenizer: Any, ids: list[int], sizes: list[int]
) -> None:
    assert "".join(stream(tokenizer, ids, sizes)) == whole(tokenizer, ids)


@pytest.mark.parametrize("text", TEXTS)
@given(sizes=CUTS)
def test_every_chunk_holds_whole_characters_only(tokenizer: Any, text: str, sizes: list[int]) -> None:
    chunks = stream(tokenizer, tokenizer(text, add_special_tokens=False)["input_ids"], sizes)
    assert "".join(chunks) == text
    assert sum(chunk.count(INCOMPLETE) for chunk in chunks) == text.count(INCOMPLETE)


@given(text=st.text(max_size=40), sizes=CUTS)
def test_any_text_survives(tokenizer: Any, text: str, sizes: list[int]) -> None:
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    chunks = stream(tokenizer, ids, sizes)
    assert "".join(chunks) == text
    assert "".join(chunks).count(INCOMPLETE) == text.count(INCOMPLETE)


@pytest.mark.parametrize("text", TEXTS[:5])
def test_each_character_comes_with_its_last_token(tokenizer: Any, text: str) -> None:
    """Nothing is held back longer than it must be: what is out is all that can be told for sure."""
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    detokenizer, shown = Detokenizer(TokenTexts.of(tokenizer)), ""
    for end, token in enumerate(ids, start=1):
        shown += detokenizer.push([token])
        told = whole(tokenizer, ids[:end])
        if not told.endswith(INCOMPLETE):
            assert shown == told


def test_special_tokens_have_no_text(tokenizer: Any) -> None:
    ids = tokenizer("ab", add_special_tokens=False)["input_ids"]
    assert "".join(stream(tokenizer, [1, *ids, 2], [])) == "ab"


def test_long_runs_of_broken_bytes_do_not_slow_down_or_get_lost(tokenizer: Any) -> None:
    continuation = tokenizer.convert_tokens_to_ids("Ģ")  # byte 0x80 in the byte-level alphabet
    ids = [continuation] * 300
    assert "".join(stream(tokenizer, ids, [])) == whole(tokenizer, ids)


FALLBACK, WORDS = KINDS["byte fallback"], KINDS["word pieces"]


@given(
    ids=st.lists(
        st.one_of(st.integers(0, len(FALLBACK)), st.sampled_from([259, 260, 263, 267])), max_size=40
    ),
    sizes=CUTS,
)
@example(ids=[259, 259, 260], sizes=[])
@example(ids=[1, 260, 2, 260], sizes=[])
@example(ids=[3 + 0xE2, 3 + 0x82, 3 + 0xAC, 3 + 0x80, 260], sizes=[])
@example(ids=[3 + 0xE2, 3 + 0x82, 1, 3 + 0xAC], sizes=[])
def test_chunks_add_up_with_byte_tokens(ids: list[int], sizes: list[int]) -> None:
    assert "".join(stream(FALLBACK, ids, sizes)) == whole(FALLBACK, ids)


@given(text=st.text(max_size=60), sizes=CUTS)
@example(text="a" + "\U0001f469" * 40 + "a", sizes=[])
def test_any_text_survives_byte_tokens(text: str, sizes: list[int]) -> None:
    ids = FALLBACK(text, add_special_tokens=False)["input_ids"]
    told = whole(FALLBACK, ids)
    chunks = stream(FALLBACK, ids, sizes)
    assert "".join(chunks) == told
    assert sum(chunk.count(INCOMPLETE) for chunk in chunks) == told.count(INCOMPLETE)


def test_a_text_of_byte_tokens_alone_is_streamed_too() -> None:
    ids = FALLBACK("\u12a0" * 60, add_special_tokens=False)["input_ids"]
    detokenizer = Detokenizer(TokenTexts.of(FALLBACK))
    chunks = [detokenizer.push([token]) for token in ids]
    assert sum(bool(chunk) for chunk in chunks) > 3
    assert "".join(chunks) + detokenizer.flush() == whole(FALLBACK, ids)


@given(ids=st.lists(st.integers(0, len(WORDS) + 1), max_size=40), sizes=CUTS)
def test_chunks_add_up_with_word_pieces(ids: list[int], sizes: list[int]) -> None:
    assert "".join(stream(WORDS, ids, sizes)) == whole(WORDS, ids)


@pytest.mark.parametrize("kind", KINDS)
@given(prompt=st.text("a bthe.\n", max_size=12), text=st.text("a bthe.\n", max_size=12), sizes=CUTS)
@example(prompt="a the", text=" the a", sizes=[])
def test_a_continuation_and_its_prompt_are_the_text_of_all_ids(
    kind: str, prompt: str, text: str, sizes: list[int]
) -> None:
    """The first space, too, which tokenizers of some kinds drop from the beginning of a text."""
    tokenizer = KINDS[kind]
    prompt_ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    ids = tokenizer("a" + text, add_special_tokens=False)["input_ids"]
    detokenizer = Detokenizer(TokenTexts.of(tokenizer))
    detokenizer.follow(prompt_ids)
    told = "".join([*(detokenizer.push(piece) for piece in cut(ids, sizes)), detokenizer.flush()])
    assert whole(tokenizer, prompt_ids) + told == whole(tokenizer, [*prompt_ids, *ids])


def test_a_text_behind_special_tokens_only_is_at_its_beginning() -> None:
    detokenizer = Detokenizer(TokenTexts.of(FALLBACK))
    detokenizer.follow([1])
    ids = FALLBACK("a", add_special_tokens=False)["input_ids"]
    assert detokenizer.push(ids) + detokenizer.flush() == whole(FALLBACK, [1, *ids]) == "a"


def test_a_step_decodes_no_more_as_the_text_grows(tokenizer: Any) -> None:
    texts = TokenTexts.of(tokenizer)
    decoded: list[int] = []

    def decode(ids: list[int]) -> str:
        decoded.append(len(ids))
        return texts.decode(ids)

    broken = tokenizer.convert_tokens_to_ids("\u0122")  # byte 0x80, which begins no character
    for ids in ([broken] * 500, tokenizer("the quick fox " * 200)["input_ids"]):
        detokenizer = Detokenizer(replace(texts, decode=decode))
        for token in ids:
            detokenizer.push([token])
    assert max(decoded) < 50


LETTERS = st.text("ab\u00e9", max_size=30)
STOPS = st.lists(st.text("ab\u00e9", min_size=1, max_size=4), max_size=4)


def stopped(text: str, stops: list[str], sizes: list[int]) -> tuple[list[str], bool]:
    holding, shown = StopStrings(stops), []
    for piece in cut(text, sizes):
        shown.append(holding.push(piece))
        if holding.matched:
            return shown, True
    return [*shown, holding.flush()], False


@given(LETTERS, STOPS, CUTS)
def test_the_text_ends_before_the_first_stop_however_it_is_cut(
    text: str, stops: list[str], sizes: list[int]
) -> None:
    shown, matched = stopped(text, stops, sizes)
    # The stop that is complete first decides; of those complete at once, the one that begins first.
    ends = [
        (place + len(stop), place)
        for stop in stops
        for place in range(len(text))
        if text.startswith(stop, place)
    ]
    assert matched == bool(ends)
    assert "".join(shown) == (text[: min(ends)[1]] if ends else text)


@given(LETTERS, STOPS, CUTS)
def test_what_may_become_a_stop_is_never_shown(text: str, stops: list[str], sizes: list[int]) -> None:
    shown, matched = stopped(text, stops, sizes)
    if matched:
        before = "".join(shown)
        assert all(stop not in before for stop in stops)


def test_without_stops_nothing_is_held_back() -> None:
    holding = StopStrings(())
    assert holding.push("abc") == "abc"
    assert holding.flush() == ""
    assert not holding.matched


def test_only_what_may_begin_a_stop_is_held_back() -> None:
    holding = StopStrings(["\nUser:"])
    assert holding.push("hello") == "hello"
    assert holding.push("\nUs") == ""
    assert holding.push("ually") == "\nUsually"
