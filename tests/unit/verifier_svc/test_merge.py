"""Trees of several sources as one: no node twice, nobody's word lost, and who differs is known."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from paceline.tree import TokenTree
from verifier_svc.merge import MergedTree, Proposal, merge
from verifier_svc.offers import Part

TEXT, EAGLE = 0, 1


def part(tree: TokenTree, *, rise: int = 0) -> Part:
    return Part(tree, rise, fresh=True)


def paths(tokens: tuple[int, ...], parents: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Tokens from the root to each node."""
    found: list[tuple[int, ...]] = []
    for token, parent in zip(tokens, parents, strict=True):
        found.append((*(found[parent] if parent >= 0 else ()), token))
    return found


@st.composite
def trees(draw: st.DrawFn, source: int) -> TokenTree:
    """Small trees of few tokens, so that two of them share paths."""
    tokens: list[int] = []
    parents: list[int] = []
    for index in range(draw(st.integers(0, 8))):
        parent = draw(st.integers(-1, index - 1)) if index else -1
        taken = {token for token, other in zip(tokens, parents, strict=True) if other == parent}
        left = [token for token in range(4) if token not in taken]
        if not left:
            break
        tokens.append(draw(st.sampled_from(left)))
        parents.append(parent)
    count = len(tokens)
    log_probs = draw(st.lists(st.floats(-5, 0), min_size=count, max_size=count))
    return TokenTree(tuple(tokens), tuple(parents), tuple(log_probs), (source,) * count)


def test_same_token_siblings_become_one_node_with_both_words() -> None:
    text = TokenTree((10, 11), (-1, 0), (-0.1, -0.2), (TEXT,) * 2)
    head = TokenTree((20, 10, 12), (-1, -1, 1), (-0.3, -0.4, -0.5), (EAGLE,) * 3)
    merged = merge([part(text), part(head, rise=1)])
    assert paths(merged.tokens, merged.parents) == [(10,), (10, 11), (20,), (10, 12)]
    both, text_only, head_only, below = merged.nodes
    assert both.proposals == (Proposal(TEXT, -0.1, 1), Proposal(EAGLE, -0.4, 2))
    assert both.others == ()
    assert (text_only.proposals, text_only.others) == ((Proposal(TEXT, -0.2, 2),), (EAGLE,))
    assert (head_only.proposals, head_only.others) == ((Proposal(EAGLE, -0.3, 2),), (TEXT,))
    assert (below.proposals, below.others) == ((Proposal(EAGLE, -0.5, 3),), (TEXT,))


def test_a_source_that_says_nothing_below_a_node_does_not_differ_there() -> None:
    text = TokenTree((10,), (-1,), (-0.1,), (TEXT,))
    head = TokenTree((10, 11), (-1, 0), (-0.1, -0.1), (EAGLE,) * 2)
    assert merge([part(text), part(head)]).nodes[1].others == ()


def test_the_last_word_of_a_source_counts() -> None:
    first = TokenTree((10, 11), (-1, 0), (-0.1, -0.2))
    larger = TokenTree((10, 11, 12), (-1, 0, 1), (-0.3, -0.4, -0.5))
    merged = merge([part(first), part(larger)])
    assert [node.proposals[0].log_prob for node in merged.nodes] == [-0.3, -0.4, -0.5]


@given(text=trees(TEXT), head=trees(EAGLE))
def test_a_merged_tree_has_every_path_once_and_every_word(text: TokenTree, head: TokenTree) -> None:
    merged = merge([part(text), part(head)])
    found = paths(merged.tokens, merged.parents)
    assert len(set(found)) == len(found)
    assert all(parent < index for index, parent in enumerate(merged.parents))
    said = {
        (source, path): log_prob
        for source, tree in ((TEXT, text), (EAGLE, head))
        for path, log_prob in zip(paths(tree.tokens, tree.parents), tree.log_probs, strict=True)
    }
    kept = {
        (proposal.source, path): proposal.log_prob
        for path, node in zip(found, merged.nodes, strict=True)
        for proposal in node.proposals
    }
    assert kept == said
    for path, node in zip(found, merged.nodes, strict=True):
        proposing = {proposal.source for proposal in node.proposals}
        beside = {source for source, other in said if other[:-1] == path[:-1]}
        assert proposing
        assert set(node.others) == beside - proposing


@given(text=trees(TEXT), head=trees(EAGLE), depth=st.integers(0, 4))
def test_cutting_at_a_depth_keeps_whole_paths(text: TokenTree, head: TokenTree, depth: int) -> None:
    merged = merge([part(text), part(head)])
    cut = merged.down_to(depth)
    kept = zip(paths(merged.tokens, merged.parents), merged.nodes, strict=True)
    assert list(zip(paths(cut.tokens, cut.parents), cut.nodes, strict=True)) == [
        (path, node) for path, node in kept if len(path) <= depth
    ]


def test_nothing_merges_to_nothing() -> None:
    assert merge([]) == MergedTree()
