"""The laws of draft trees."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paceline.tree import TokenTree, TreeError, TreeFault, check

VOCAB = 6
MAX_NODES = 64
MAX_DEPTH = 64
Path = tuple[int, ...]


@st.composite
def trees(draw: st.DrawFn, max_nodes: int = 24) -> TokenTree:
    """Sound trees of any shape."""
    nodes: dict[tuple[int, int], float] = {}
    for _ in range(draw(st.integers(0, max_nodes))):
        parent, token = draw(st.integers(-1, len(nodes) - 1)), draw(st.integers(0, VOCAB - 1))
        nodes.setdefault((parent, token), draw(st.integers(-40, 0)) / 8)
    return TokenTree(
        tuple(token for _, token in nodes), tuple(parent for parent, _ in nodes), tuple(nodes.values())
    )


def is_sound(tree: TokenTree) -> None:
    check(tree, vocab_size=VOCAB, max_nodes=MAX_NODES, max_depth=MAX_DEPTH)


def paths(tree: TokenTree) -> dict[Path, float]:
    """Every node as its path of tokens from the root, with its log-probability."""
    found: list[Path] = []
    for token, parent in zip(tree.tokens, tree.parents, strict=True):
        found.append((*(found[parent] if parent >= 0 else ()), token))
    return dict(zip(found, tree.log_probs, strict=True))


@given(trees())
def test_a_built_tree_is_sound(tree: TokenTree) -> None:
    is_sound(tree)
    assert len(paths(tree)) == len(tree)
    assert tree.depths() == [len(path) for path in paths(tree)]


@given(trees())
def test_survival_is_the_sum_along_the_path_and_never_grows(tree: TokenTree) -> None:
    known = paths(tree)
    for path, survival in zip(known, tree.survivals(), strict=True):
        assert math.isclose(survival, sum(known[path[: end + 1]] for end in range(len(path))), abs_tol=1e-9)
    for parent, survival in zip(tree.parents, tree.survivals(), strict=True):
        assert parent < 0 or survival <= tree.survivals()[parent]


@given(trees(), st.lists(st.integers(0, VOCAB - 1), max_size=4))
def test_reroot_keeps_exactly_what_lies_below_the_committed_path(
    tree: TokenTree, committed: list[int]
) -> None:
    left = tree.reroot(committed)
    is_sound(left)
    end = len(committed)
    expected = {
        path[end:]: log_prob
        for path, log_prob in paths(tree).items()
        if path[:end] == tuple(committed) and len(path) > end
    }
    assert paths(left) == expected


@given(trees(), st.data())
def test_reroot_along_a_path_is_the_subtree_of_its_node(tree: TokenTree, data: st.DataObject) -> None:
    if len(tree):
        node = data.draw(st.integers(0, len(tree) - 1))
        assert tree.reroot(list(paths(tree))[node]) == tree.subtree(node)


@given(trees(), st.lists(st.integers(0, VOCAB - 1), max_size=4), st.integers(0, 4))
def test_reroot_in_two_steps_is_reroot_in_one(tree: TokenTree, committed: list[int], cut: int) -> None:
    assert tree.reroot(committed[:cut]).reroot(committed[cut:]) == tree.reroot(committed)


def test_the_root_is_its_own_subtree() -> None:
    tree = TokenTree((1, 2), (-1, 0), (-0.1, -0.2))
    assert tree.reroot(()) == tree.subtree(-1) == tree


@given(trees(), st.integers(-1, 30))
def test_best_is_closed_under_parents_and_keeps_the_highest_survivals(tree: TokenTree, budget: int) -> None:
    best = tree.best(budget)
    is_sound(best)
    assert len(best) == min(max(budget, 0), len(tree))
    assert paths(best).items() <= paths(tree).items()
    everything = sorted(tree.survivals(), reverse=True)
    assert sorted(best.survivals(), reverse=True) == pytest.approx(everything[: len(best)])


@given(trees(), st.integers(1, 30))
def test_best_starts_with_the_likeliest_path(tree: TokenTree, budget: int) -> None:
    best = tree.best(budget)
    node, index = -1, 0
    while index < len(best) and best.parents[index] == node:
        siblings = [best.log_probs[each] for each in range(len(best)) if best.parents[each] == node]
        assert best.log_probs[index] == max(siblings)
        node, index = index, index + 1


@given(trees())
def test_child_finds_exactly_the_siblings_that_are_there(tree: TokenTree) -> None:
    for node in range(-1, len(tree)):
        for token in range(VOCAB):
            there = [
                index
                for index in range(len(tree))
                if tree.parents[index] == node and tree.tokens[index] == token
            ]
            assert tree.child(node, token) == (there[0] if there else None)


@pytest.mark.parametrize(
    ("tokens", "parents", "log_probs", "fault", "where"),
    [
        ((1, 2), (-1,), (0.0, 0.0), TreeFault.MALFORMED, "equally long"),
        ((1,), (-1,), (), TreeFault.MALFORMED, "equally long"),
        ((1,), (-1,), (0.5,), TreeFault.MALFORMED, "node 0"),
        ((1,), (-1,), (math.nan,), TreeFault.MALFORMED, "node 0"),
        ((1, 2), (-1, -2), (0.0, 0.0), TreeFault.BAD_PARENT, "node 1 has parent -2"),
        ((1, 2), (-1, 5), (0.0, 0.0), TreeFault.BAD_PARENT, "node 1 has parent 5"),
        ((1,), (0,), (0.0,), TreeFault.BAD_PARENT, "node 0 has parent 0"),
        ((1, 2), (1, 0), (0.0, 0.0), TreeFault.BAD_PARENT, "node 0 has parent 1"),
        ((1, 1), (-1, -1), (0.0, 0.0), TreeFault.DUPLICATE_SIBLING, "node 1 repeats token 1"),
        ((1, 2, 2), (-1, 0, 0), (0.0,) * 3, TreeFault.DUPLICATE_SIBLING, "node 2 repeats token 2"),
        ((1, VOCAB), (-1, 0), (0.0, 0.0), TreeFault.TOKEN_OUT_OF_RANGE, "node 1 has token 6"),
        ((-1,), (-1,), (0.0,), TreeFault.TOKEN_OUT_OF_RANGE, "node 0 has token -1"),
        ((1, 2, 3, 4, 5), (-1,) * 5, (0.0,) * 5, TreeFault.TOO_MANY_NODES, "5 nodes, at most 4"),
        ((1, 1, 1, 1), (-1, 0, 1, 2), (0.0,) * 4, TreeFault.TOO_DEEP, "node 3 is at depth 4, at most 3"),
    ],
)
def test_each_fault_has_its_name_and_its_place(
    tokens: Path, parents: Path, log_probs: tuple[float, ...], fault: TreeFault, where: str
) -> None:
    with pytest.raises(TreeError, match=where) as caught:
        check(TokenTree(tokens, parents, log_probs), vocab_size=VOCAB, max_nodes=4, max_depth=3)
    assert caught.value.fault is fault


ANY = st.lists(st.integers(-3, 8), max_size=6).map(tuple)


@given(ANY, ANY, st.lists(st.floats(allow_nan=True), max_size=6).map(tuple))
def test_whatever_comes_is_sound_or_refused(
    tokens: Path, parents: Path, log_probs: tuple[float, ...]
) -> None:
    tree = TokenTree(tokens, parents, log_probs)
    try:
        check(tree, vocab_size=VOCAB, max_nodes=4, max_depth=3)
    except TreeError:
        return
    assert len(paths(tree)) == len(tree) <= 4
    assert all(depth <= 3 for depth in tree.depths())
