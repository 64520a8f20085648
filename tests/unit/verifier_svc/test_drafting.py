"""A session's drafter: trees are re-rooted when late and dropped when they no longer fit; who joins anew."""

from __future__ import annotations

from paceline.tree import TokenTree
from verifier_svc.drafting import ASKED_TREES, Drafting

# 10 -> 11 -> 12, and 20 beside 10 with 21 below.
TREE = TokenTree((10, 20, 11, 21, 12), (-1, -1, 0, 1, 2), (-0.1, -2.0, -0.1, -0.1, -0.1))
PROMPT = [1, 2, 3]


def _came(*, base: int = 4, tree: TokenTree = TREE) -> Drafting:
    drafting = Drafting(stream_id=1)
    drafting.came(tree, base, length=4, now=0.0)
    return drafting


def _take(drafting: Drafting, *committed: int, max_depth: int = 9) -> tuple[TokenTree, bool]:
    return drafting.take([*PROMPT, *committed], max_depth=max_depth)


def test_nothing_waits() -> None:
    assert _take(Drafting(), 5) == (TokenTree(), False)


def test_a_tree_in_time_is_taken_whole_and_used_up() -> None:
    drafting = _came()
    assert drafting.trees_offered == 1
    assert _take(drafting, 5) == (TREE, False)
    assert drafting.trees_offered == 0
    assert _take(drafting, 5) == (TokenTree(), False)


def test_a_late_tree_is_rerooted_along_what_was_committed() -> None:
    assert _take(_came(), 5, 10, 11) == (TokenTree((12,), (-1,), (-0.1,)), False)


def test_a_late_tree_that_no_longer_fits_is_dropped_and_counted() -> None:
    for committed in ([5, 9], [5, 10, 12], [5, 10, 11, 12]):
        drafting = _came()
        assert _take(drafting, *committed) == (TokenTree(), True)
        assert drafting.tree is None


def test_the_newest_tree_counts() -> None:
    drafting = _came()
    drafting.came(TokenTree((7,), (-1,), (-1.0,)), 5, length=5, now=0.0)
    assert drafting.trees_offered == 2
    assert _take(drafting, 5, 10)[0].tokens == (7,)


def test_nodes_below_the_last_useful_depth_are_left_out() -> None:
    assert sorted(_take(_came(), 5, max_depth=2)[0].tokens) == [10, 11, 20, 21]
    assert _take(_came(), 5, max_depth=0) == (TokenTree(), False)


def test_an_answer_is_timed_from_its_own_request_also_when_it_is_late() -> None:
    drafting = Drafting(stream_id=1)
    drafting.asked(4, now=10.0)
    drafting.asked(5, now=11.0)
    assert drafting.came(TREE, 4, length=5, now=11.5) == 1.5
    assert drafting.awaited_since == 11.0, "the newer tree is still awaited"
    assert drafting.came(TREE, 5, length=5, now=11.75) == 0.75
    assert drafting.awaited_since == 0.0
    assert drafting.came(TREE, 5, length=5, now=12.0) is None, "nobody asked for a second one"


def test_only_the_last_requests_are_remembered() -> None:
    drafting = Drafting(stream_id=1)
    for length in range(100):
        drafting.asked(length, now=float(length))
    assert len(drafting.asked_at) == ASKED_TREES
    assert drafting.came(TREE, 0, length=99, now=100.0) is None


def test_another_drafters_tree_goes_and_ones_own_stays() -> None:
    drafting = _came()
    drafting.join(1, 6)
    assert (drafting.tree, drafting.told_length) == (TREE, 6)
    drafting.join(2, 7)
    assert (drafting.stream_id, drafting.tree, drafting.told_length) == (2, None, 7)


def test_without_a_drafter_nothing_is_awaited() -> None:
    drafting = _came()
    drafting.asked(5, now=1.0)
    drafting.leave()
    assert (drafting.stream_id, drafting.tree, drafting.awaited_since) == (0, None, 0.0)
