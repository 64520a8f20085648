"""A hypothesis follows its verdicts: ids grow, rows find their contexts, a gap is never guessed over."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drafter_svc.hypothesis import Hypothesis, OutOfStep, Row
from paceline.session import SamplingParams, SessionKey
from paceline.tree import TokenTree
from paceline.verdict import Feedback, Verdict

KEY = SessionKey("s", 1)


def session(*ids: int) -> Hypothesis:
    return Hypothesis(KEY, SamplingParams(max_tokens=8), ids)


def test_ids_known_already_are_not_appended_twice() -> None:
    known = session(1, 2, 3)
    outcome = known.learn(Verdict(KEY, 2, (3, 4, 5)))
    assert known.ids == [1, 2, 3, 4, 5]
    assert (outcome.start, outcome.committed) == (3, (4, 5))


def test_a_verdict_past_what_is_known_is_out_of_step() -> None:
    known = session(1, 2)
    with pytest.raises(OutOfStep):
        known.learn(Verdict(KEY, 3, (4,)))
    assert known.ids == [1, 2]


def test_a_verdict_that_contradicts_what_is_known_is_out_of_step() -> None:
    known = session(1, 2)
    with pytest.raises(OutOfStep):
        known.learn(Verdict(KEY, 1, (7, 8)))
    assert known.ids == [1, 2]


def test_rows_carry_the_path_of_their_node() -> None:
    known = session(1, 2)
    known.sent(TokenTree((5, 6, 7), (-1, 0, -1), (-0.1, -0.1, -2.0)))
    feedback = Feedback(row_tokens=(2, 5, 6, 7), top_ids=(5, 6, 9, 8), top_k=1)
    outcome = known.learn(Verdict(KEY, 2, (5, 6, 9), accepted=2, drafted=3, feedback=feedback))
    assert outcome.rows == (
        Row((1, 2), (5,), 2),
        Row((1, 2, 5), (6,), 3),
        Row((1, 2, 5, 6), (9,), 4),
        Row((1, 2, 7), (8,), 3),
    )


def test_rows_of_a_tree_that_was_rerooted_and_pruned_find_their_context() -> None:
    known = session(1)
    known.sent(TokenTree((2, 3, 4, 9), (-1, 0, 0, -1), (-0.1, -0.1, -3.0, -4.0)))
    known.learn(Verdict(KEY, 1, (2,)))
    feedback = Feedback(row_tokens=(2, 3), top_ids=(3, 7), top_k=1)
    outcome = known.learn(Verdict(KEY, 2, (3, 7), accepted=1, drafted=1, feedback=feedback))
    assert outcome.rows == (Row((1, 2), (3,), 2), Row((1, 2, 3), (7,), 3))


def test_rows_of_an_unknown_tree_keep_only_their_own_id() -> None:
    known = session(1, 2)
    feedback = Feedback(row_tokens=(2, 30, 31), top_ids=(5, 6, 9), top_k=1)
    outcome = known.learn(Verdict(KEY, 2, (5,), drafted=2, feedback=feedback))
    assert outcome.rows == (Row((1, 2), (5,), 2), Row((30,), (6,), None), Row((31,), (9,), None))


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
        outcome = known.learn(Verdict(KEY, base, tuple(text[base : position + cut])))
        assert list(outcome.committed) == text[position : position + cut]
        position = min(len(text), position + cut)
    assert known.ids == text[:position]
