"""What came of each source's nodes, and how few labels their names become."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from paceline.session import MAX_RECEIPT_SOURCES, OTHER_SOURCES, SourceTokens, add_up
from paceline.tree import TokenTree
from verifier_svc.merge import merge
from verifier_svc.offers import Part
from verifier_svc.sources import MOST_LABELS, SHIPPED, SourceLabels, counts

NAMES = st.text("abc_-0", min_size=1, max_size=3)
COUNTS = st.lists(
    st.builds(SourceTokens, NAMES | st.just(OTHER_SOURCES), st.integers(0, 9), st.integers(0, 9)), max_size=40
)


def test_a_node_counts_for_each_source_that_proposed_it() -> None:
    text = TokenTree((1, 2), (-1, 0), (-0.1,) * 2, (0, 0))
    head = TokenTree((1, 3), (-1, 0), (-0.1,) * 2, (1, 1))
    nodes = merge([Part(text, 0, fresh=True), Part(head, 0, fresh=True)]).nodes
    assert counts(nodes, [0, 2], ("text", "eagle")) == (
        SourceTokens("text", 2, 1),
        SourceTokens("eagle", 2, 2),
    )
    assert counts(nodes, [], ("text", "eagle")) == (SourceTokens("text", 2, 0), SourceTokens("eagle", 2, 0))
    assert counts((), (), ("",)) == ()


@given(st.lists(st.text("abcdefgh", min_size=1, max_size=4), max_size=200))
def test_labels_are_few_whatever_names_drafters_choose(names: list[str]) -> None:
    labels = SourceLabels()
    told = {labels.of(name) for name in names}
    assert len(told | set(SHIPPED)) <= MOST_LABELS
    assert [labels.of(name) for name in SHIPPED] == list(SHIPPED), "nobody takes their place"
    assert labels.of("") == "unnamed"
    assert [labels.of(name) for name in names] == [labels.of(name) for name in names], "a label stays"


@given(COUNTS)
def test_sums_by_source_lose_nothing_and_stay_few(told: list[SourceTokens]) -> None:
    total = add_up(told)
    assert len(total) <= MAX_RECEIPT_SOURCES
    assert len({each.source for each in total}) == len(total)
    assert sum(each.drafted_tokens for each in total) == sum(each.drafted_tokens for each in told)
    assert sum(each.accepted_tokens for each in total) == sum(each.accepted_tokens for each in told)
    ranked = [each.accepted_tokens for each in total if each.source != OTHER_SOURCES]
    assert ranked == sorted(ranked, reverse=True)
    assert add_up(total) == total or len(total) == MAX_RECEIPT_SOURCES


@given(COUNTS, COUNTS)
def test_few_sources_are_summed_in_any_order(one: list[SourceTokens], other: list[SourceTokens]) -> None:
    if len({each.source for each in [*one, *other]}) <= MAX_RECEIPT_SOURCES:
        assert add_up((*add_up(one), *other)) == add_up([*other, *one])
