"""A text's counts are those of counting it anew, however it grew."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paceline.engine.logits.history import History

IDS = st.lists(st.integers(0, 300), max_size=200)


@given(prompt=st.lists(st.integers(0, 300), min_size=1), parts=st.lists(st.tuples(IDS, IDS), max_size=5))
def test_counts_are_those_of_the_generated_ids_and_the_path(
    prompt: list[int], parts: list[tuple[list[int], list[int]]]
) -> None:
    text = list(prompt)
    history = History(text, len(prompt))
    for committed, path in parts:
        text += committed
        # Twice: a step may be computed again.
        for _ in range(2):
            ids, counts = history.generated(len(text), path)
            found = dict(zip(ids.tolist(), counts.tolist(), strict=True))
            assert found == Counter([*text[len(prompt) :], *path])
    assert history.prompt_ids.tolist() == sorted({*prompt})


@given(text=st.lists(st.integers(0, 2), min_size=1), path=st.lists(st.integers(0, 2)), data=st.data())
def test_a_text_ends_with_what_stands_at_its_end(
    text: list[int], path: list[int], data: st.DataObject
) -> None:
    whole = [*text, *path]
    phrase = data.draw(st.lists(st.integers(0, 2), min_size=1, max_size=4))
    history = History(text, 0)
    expected = len(phrase) <= len(whole) and whole[-len(phrase) :] == phrase
    assert history.ends_with(len(text), path, phrase) == expected
    assert history.last(len(text), path) == whole[-1]


def test_a_text_is_not_counted_backwards() -> None:
    history = History([1, 2, 3], 1)
    history.generated(3, ())
    with pytest.raises(ValueError, match="3 ids are counted already, 2 were asked for"):
        history.generated(2, ())
