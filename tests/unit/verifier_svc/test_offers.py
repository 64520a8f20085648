"""Trees that wait: what continues the text is kept, whichever source sends something newer."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from paceline.tree import TokenTree
from verifier_svc import offers
from verifier_svc.offers import MOST_NODES, MOST_OFFERS, Offer

# 10 -> 11 -> 12, and 20 beside 10 with 21 below.
TREE = TokenTree((10, 20, 11, 21, 12), (-1, -1, 0, 1, 2), (-0.1, -2.0, -0.1, -0.1, -0.1))
PROMPT = [1, 2, 3, 5]
TEXT, EAGLE = 0, 1


def chain(*tokens: int, source: int = TEXT) -> TokenTree:
    count = len(tokens)
    return TokenTree(tokens, tuple(range(-1, count - 1)), (-0.5,) * count, (source,) * count)


def held(*came: tuple[int, TokenTree]) -> tuple[Offer, ...]:
    waiting: tuple[Offer, ...] = ()
    for base, tree in came:
        waiting = offers.add(waiting, base, tree)
    return waiting


def fitting(waiting: tuple[Offer, ...], *committed: int) -> list[tuple[tuple[int, ...], int]]:
    """Tokens of the parts that continue the text, and how far each is below its own root."""
    return [(part.tree.tokens, part.rise) for part in offers.fitting(waiting, [*PROMPT, *committed])[1]]


def test_a_tree_in_time_fits_whole() -> None:
    assert fitting(held((4, TREE))) == [(TREE.tokens, 0)]


def test_a_late_tree_is_rerooted_along_what_was_committed() -> None:
    assert fitting(held((4, TREE)), 10, 11) == [((12,), 2)]


def test_a_tree_off_the_text_or_at_its_end_does_not_fit() -> None:
    for committed in ([9], [10, 12], [10, 11, 12]):
        assert offers.fitting(held((4, TREE)), [*PROMPT, *committed]) == ((), [])


def test_a_newer_tree_of_the_same_source_counts_instead() -> None:
    assert fitting(held((4, chain(10, 11)), (5, chain(13))), 10) == [((13,), 0)]
    assert fitting(held((5, chain(13)), (4, chain(10, 11))), 10) == [((13,), 0)], (
        "in whichever order they come"
    )


def test_a_newer_tree_leaves_other_sources_trees() -> None:
    late = held((4, chain(10, 11, 12, source=EAGLE)), (5, chain(13)))
    assert fitting(late, 10) == [((11, 12), 1), ((13,), 0)]
    slow = held((5, chain(13)), (4, chain(10, 11, 12, source=EAGLE)))
    assert sorted(fitting(slow, 10)) == [((11, 12), 1), ((13,), 0)]


def test_of_a_tree_of_several_sources_each_counts_until_it_sends_a_newer_one() -> None:
    # The text's 10 leads to the head's 11; 20 is the text's alone.
    both = TokenTree((10, 20, 11), (-1, -1, 0), (-0.1,) * 3, (TEXT, TEXT, EAGLE))
    assert fitting(held((4, both))) == [((10, 20, 11), 0)]
    longer = held((4, both), (5, chain(13)))
    assert fitting(longer, 10) == [((11,), 1), ((13,), 0)]
    again = held((4, both), (5, chain(13, source=EAGLE)))
    assert fitting(again, 20) == [((13,), 0)], "the head's old nodes lie elsewhere"


def test_nodes_that_lead_to_another_sources_are_kept_with_them() -> None:
    both = TokenTree((10, 20, 11), (-1, -1, 0), (-0.1,) * 3, (TEXT, TEXT, EAGLE))
    (offer, _) = held((4, both), (5, chain(13)))
    assert fitting((offer,)) == [((10, 11), 0)]


def test_on_the_same_text_a_larger_tree_and_another_source_add_to_what_waits() -> None:
    waiting = held((4, chain(10)), (4, chain(10, 11)), (4, chain(20, source=EAGLE)))
    assert [tokens for tokens, _ in fitting(waiting)] == [(10,), (10, 11), (20,)]


def test_large_trees_of_many_sources_leave_the_oldest_out() -> None:
    """A drafter may name sixteen sources, and send a large tree of each."""
    large = [chain(*range(100), source=source) for source in range(16)]
    waiting = held(*((4, tree) for tree in large))
    assert [offer.sources for offer in waiting] == [frozenset({14}), frozenset({15})]
    assert len(held((4, chain(*range(2 * MOST_NODES))))) == 1, "a verifier may take larger ones"


@given(
    st.lists(
        st.tuples(
            st.integers(1, 4),
            st.lists(st.integers(0, 2), min_size=1, max_size=4),
            st.integers(0, 2),
        ),
        max_size=20,
    )
)
def test_each_source_has_trees_of_one_base_at_most_and_memory_is_bounded(
    came: list[tuple[int, list[int], int]],
) -> None:
    waiting = held(*((base, chain(*tokens, source=source)) for base, tokens, source in came))
    assert len(waiting) <= MOST_OFFERS
    for source in range(3):
        bases = {offer.base for offer in waiting if source in offer.sources}
        assert len(bases) <= 1
        sent = [base for base, _, each in came if each == source]
        if bases and len(came) <= MOST_OFFERS:
            assert bases == {max(sent)}


@given(data=st.data())
def test_what_fits_is_what_a_path_along_the_text_leads_to(data: st.DataObject) -> None:
    count = data.draw(st.integers(1, 12))
    parents = tuple(data.draw(st.integers(-1, index - 1)) for index in range(count))
    # All tokens differ, so that every path is one node's.
    tree = TokenTree(tuple(range(10, 10 + count)), parents, (-0.1,) * count)
    node, path = data.draw(st.integers(0, count - 1)), list[int]()
    while node >= 0:
        path.insert(0, tree.tokens[node])
        node = tree.parents[node]
    parts = offers.fitting(held((4, tree)), [*PROMPT, *path])[1]
    below = [
        token
        for token, parent in zip(tree.tokens, tree.parents, strict=True)
        if parent >= 0 and tree.tokens[parent] == path[-1]
    ]
    found = [
        token
        for part in parts
        for token, parent in zip(part.tree.tokens, part.tree.parents, strict=True)
        if parent < 0
    ]
    assert sorted(found) == sorted(below)
