"""A hypothesis follows its verdicts: ids grow, rows find their contexts, a gap is never guessed over."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drafter_svc.hypothesis import CONTEXT_IDS, Hypothesis, OutOfStepError, Row
from paceline.sampling import SamplingParams
from paceline.session import SessionKey
from paceline.tree import TokenTree
from paceline.verdict import Feedback, Verdict

KEY = SessionKey("s", 1)


def session(*ids: int) -> Hypothesis:
    return Hypothesis(KEY, SamplingParams(max_tokens=8), ids)


def test_ids_known_already_are_not_appended_twice() -> None:
    known = session(1, 2, 3)
    lesson = known.learn(Verdict(KEY, 2, (3, 4, 5)))
    assert known.ids == [1, 2, 3, 4, 5]
    assert (lesson.start, lesson.committed) == (3, (4, 5))


def test_a_verdict_past_what_is_known_is_out_of_step() -> None:
    known = session(1, 2)
    with pytest.raises(OutOfStepError):
        known.learn(Verdict(KEY, 3, (4,)))
    assert known.ids == [1, 2]


def test_a_verdict_that_contradicts_what_is_known_is_out_of_step() -> None:
    known = session(1, 2)
    with pytest.raises(OutOfStepError):
        known.learn(Verdict(KEY, 1, (7, 8)))
    assert known.ids == [1, 2]


def test_rows_carry_the_path_of_their_node() -> None:
    known = session(1, 2)
    verified = TokenTree((5, 6, 7), (-1, 0, -1), (-0.1, -0.1, -2.0))
    feedback = Feedback.of(2, verified, top_ids=(5, 0, 6, 0, 9, 0, 8, 0), top_k=2)
    lesson = known.learn(Verdict(KEY, 2, (5, 6, 9), accepted=2, drafted=3, feedback=feedback))
    assert lesson.rows == (
        Row((1, 2), (5, 0), 2),
        Row((1, 2, 5), (6, 0), 3),
        Row((1, 2, 5, 6), (9, 0), 4),
        Row((1, 2, 7), (8, 0), 3),
    )


def test_rows_without_ids_teach_nothing() -> None:
    """Else they would stand for what the tables know of the same texts."""
    verified = TokenTree((5,), (-1,), (-0.1,))
    verdict = Verdict(KEY, 2, (5, 6), accepted=1, drafted=1, feedback=Feedback.of(2, verified, (), 0))
    assert session(1, 2).learn(verdict).rows == ()


@given(
    ids=st.lists(st.integers(0, 9), min_size=1, max_size=12),
    known=st.integers(0, 3),
    parents=st.lists(st.integers(-1, 20), max_size=20),
)
def test_the_rows_of_any_tree_find_their_whole_path(ids: list[int], known: int, parents: list[int]) -> None:
    """Whatever the verifier took of a tree that was sent, and in whatever order."""
    parents = [min(parent, node - 1) for node, parent in enumerate(parents)]
    tokens = tuple(range(10, 10 + len(parents)))
    paths = [tuple(ids)]
    for token, parent in zip(tokens, parents, strict=True):
        paths.append((*paths[parent + 1], token))
    tree = TokenTree(tokens, tuple(parents), (-1.0,) * len(tokens))
    feedback = Feedback.of(ids[-1], tree, tuple(range(len(paths))), 1)
    # Some of what was committed may be known from the answer to a Join.
    committed = tuple(range(30, 33))
    lesson = session(*ids, *committed[:known]).learn(Verdict(KEY, len(ids), committed, feedback=feedback))
    assert lesson.rows == tuple(Row(path[-CONTEXT_IDS:], (row,), len(path)) for row, path in enumerate(paths))


@given(
    text=st.lists(st.integers(0, 5), min_size=2, max_size=40),
    cuts=st.lists(st.integers(1, 6), max_size=40),
    back=st.integers(0, 3),
)
def test_any_split_of_a_text_into_verdicts_rebuilds_it(text: list[int], cuts: list[int], back: int) -> None:
    known = session(text[0])
    position = 1
    for cut in cuts:
        base = max(1, position - back)
        lesson = known.learn(Verdict(KEY, base, tuple(text[base : position + cut])))
        assert list(lesson.committed) == text[position : position + cut]
        position = min(len(text), position + cut)
    assert known.ids == text[:position]
