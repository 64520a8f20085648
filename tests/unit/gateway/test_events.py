"""What a client that has come to a mark is still to be told."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import RequestError
from gateway.events import Chunk, Mark, Untold

PROMPT = 3
# Texts of tokens: one with none is part of a character.
TOKENS = st.lists(st.text(max_size=3), max_size=30)


def cut(texts: list[str], ends: list[int]) -> list[Chunk]:
    """A session's chunks, cut at these places."""
    places = sorted({0, len(texts), *(end % (len(texts) + 1) for end in ends)})
    return [
        Chunk("".join(texts[a:b]), PROMPT + a, tuple(range(a, b)), min(1, b - a), True)
        for a, b in itertools.pairwise(places)
    ]


@given(
    TOKENS, st.lists(st.integers(0, 99)), st.lists(st.integers(0, 99)), st.integers(0, 99), st.integers(0, 5)
)
def test_each_token_and_character_is_told_once(
    texts: list[str], before: list[int], after: list[int], heard: int, lag: int
) -> None:
    """However both streams cut the session, and with text behind the tokens by `lag` characters."""
    whole = "".join(texts)
    told = cut(texts, before)[: heard % (len(before) + 2)]
    ids = [token for chunk in told for token in chunk.token_ids]
    text = "".join(chunk.text for chunk in told)
    text = text[: max(0, len(text) - lag)]
    untold = Untold(Mark("s", PROMPT + len(ids), len(text)))
    for chunk in cut(texts, after):
        new = untold.of(chunk)
        if new is not None:
            assert new.token_ids == () or new.position == PROMPT + len(ids)
            assert 0 <= new.accepted <= len(new.token_ids)
            ids += new.token_ids
            text += new.text
    assert ids == list(range(len(texts)))
    assert text == whole


@given(st.from_regex(r"[A-Za-z0-9_-]{1,64}", fullmatch=True), st.integers(0, 10**9), st.integers(0, 10**9))
def test_a_mark_is_read_back(session_id: str, position: int, characters: int) -> None:
    mark = Mark(session_id, position, characters)
    assert Mark.parse(str(mark)) == mark


@pytest.mark.parametrize(
    "text", ["", "s", "s:1", "s:1:", "s:1:2:3", "s:+1:2", "s:1:٣", "s: 1:2", "s:1:" + "9" * 99]
)
def test_what_is_no_mark_is_refused(text: str) -> None:
    with pytest.raises(RequestError):
        Mark.parse(text)
