"""Waiting trees: re-rooted when late, dropped and counted when they no longer fit."""

from __future__ import annotations

from paceline.sampling import SamplingParams
from paceline.session import SessionKey
from paceline.tree import TokenTree
from verifier_svc import inbox
from verifier_svc.sessions import Session

# 10 -> 11 -> 12, and 20 beside 10 with 21 below.
TREE = TokenTree((10, 20, 11, 21, 12), (-1, -1, 0, 1, 2), (-0.1, -2.0, -0.1, -0.1, -0.1))


def _session(*committed: int, max_tokens: int = 100) -> Session:
    return Session(
        key=SessionKey("s", 1),
        prompt_length=3,
        token_ids=[1, 2, 3, *committed],
        sampling=SamplingParams(max_tokens=max_tokens),
        length_limit=3 + max_tokens,
    )


def test_nothing_waits() -> None:
    assert inbox.take(_session(5), 8) == (TokenTree(), False)


def test_a_tree_in_time_is_taken_likeliest_path_first_and_used_up() -> None:
    session = _session(5)
    inbox.put(session, 4, TREE)
    tree, dropped = inbox.take(session, 8)
    assert (tree.tokens, tree.parents, dropped) == ((10, 11, 12, 20, 21), (-1, 0, 1, -1, 3), False)
    assert inbox.take(session, 8) == (TokenTree(), False)


def test_a_late_tree_is_rerooted_along_what_was_committed() -> None:
    session = _session(5, 10, 11)
    inbox.put(session, 4, TREE)
    assert inbox.take(session, 8) == (TokenTree((12,), (-1,), (-0.1,)), False)


def test_a_late_tree_that_no_longer_fits_is_dropped_and_counted() -> None:
    for committed in ([5, 9], [5, 10, 12], [5, 10, 11, 12]):
        session = _session(*committed)
        inbox.put(session, 4, TREE)
        assert inbox.take(session, 8) == (TokenTree(), True)
        assert session.tree is None


def test_the_newest_tree_counts() -> None:
    session = _session(5, 10)
    inbox.put(session, 4, TREE)
    inbox.put(session, 5, TokenTree((7,), (-1,), (-1.0,)))
    assert inbox.take(session, 8)[0].tokens == (7,)


def test_the_budget_keeps_the_likeliest_nodes_and_zero_keeps_none() -> None:
    session = _session(5)
    inbox.put(session, 4, TREE)
    assert inbox.take(session, 2)[0].tokens == (10, 11)
    inbox.put(session, 4, TREE)
    assert inbox.take(session, 0) == (TokenTree(), False)


def test_nodes_past_the_last_possible_token_are_left_out() -> None:
    # Three tokens to go, one is the target's own: two levels may be drafted.
    session = _session(5, max_tokens=4)
    inbox.put(session, 4, TREE)
    tree, _ = inbox.take(session, 8)
    assert sorted(tree.tokens) == [10, 11, 20, 21]
    last = _session(5, max_tokens=2)
    inbox.put(last, 4, TREE)
    assert inbox.take(last, 8) == (TokenTree(), False)
