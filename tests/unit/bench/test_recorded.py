"""Recorded trees: found by their text, and grown ahead along it into legal trees."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

from hypothesis import given
from hypothesis import strategies as st

from bench.drafters.recorded import Recorded, hit_rate, place
from paceline import tree
from paceline.tree import TokenTree

VOCAB = 5
TEXTS = st.lists(st.integers(0, VOCAB - 1), min_size=4, max_size=20)


@st.composite
def trees(draw: st.DrawFn) -> TokenTree:
    """Small legal trees."""
    parents: list[int] = []
    tokens: list[int] = []
    for index in range(draw(st.integers(0, 8))):
        parent = draw(st.integers(-1, index - 1))
        free = [
            token for token in range(VOCAB) if (parent, token) not in set(zip(parents, tokens, strict=True))
        ]
        if free:
            parents.append(parent if parent < len(tokens) else -1)
            tokens.append(draw(st.sampled_from(free)))
    made = TokenTree(tuple(tokens), tuple(parents), (-0.5,) * len(tokens))
    try:
        tree.check(made, vocab_size=VOCAB, max_nodes=64, max_depth=64)
    except tree.TreeError:
        return TokenTree()
    return made


def _recorded(text: list[int], drafted: list[TokenTree]) -> Recorded:
    places = [place(text[:base]) for base in range(1, len(text))]
    return Recorded(dict(zip(places, drafted, strict=False)), dict(zip(places, text[1:], strict=True)))


@given(TEXTS, st.lists(trees(), min_size=20, max_size=20), st.integers(1, 40))
def test_a_tree_grows_along_the_text(text: list[int], drafted: list[TokenTree], nodes: int) -> None:
    recorded = _recorded(text, drafted)
    for base in range(1, len(text)):
        sent = recorded.drafted(text[:base], 8)
        larger = recorded.ahead(text[:base], sent, len(sent) + nodes)
        tree.check(larger, vocab_size=VOCAB, max_nodes=len(sent) + nodes, max_depth=64)
        assert larger.select(range(len(sent))) == sent

        def accepted(drafted: TokenTree, base: int = base) -> int:
            node, count = -1, 0
            for token in text[base:]:
                child = drafted.child(node, token)
                if child is None:
                    break
                node, count = child, count + 1
            return count

        assert accepted(larger) >= accepted(sent)


@given(TEXTS, st.lists(trees(), min_size=20, max_size=20))
def test_it_is_read_as_written(text: list[int], drafted: list[TokenTree]) -> None:
    recorded = _recorded(text, drafted)
    with TemporaryDirectory() as folder:
        path = Path(folder) / "trees"
        recorded.write(path)
        assert Recorded.read(path) == recorded


def test_outcomes_are_hit_where_the_trees_hold_them() -> None:
    text = list(range(12))
    prompt, answer = text[:2], text[2:]

    def rate(count: int) -> float:
        """Of chains of so many right tokens."""
        chains = []
        for base in range(1, len(text)):
            tokens = tuple(text[base : base + count])
            chains.append(TokenTree(tokens, tuple(range(-1, len(tokens) - 1)), (-0.5,) * len(tokens)))
        # A second source has nothing to say.
        sources = [_recorded(text, chains), _recorded(text, [TokenTree()] * len(chains))]
        return hit_rate(sources, [(prompt, answer)], nodes=2, most=4)

    # Two nodes of a step are right, and what comes behind them was drafted, too, or is drafted ahead.
    assert rate(4) == rate(2) == 1.0
    assert rate(0) == 0.0
