"""Trees of EAGLE-2: legal, of right survival, and the best that exist where every level is grown whole."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from drafter_svc.neural.growth import Bounds, Candidates, Growth, Level, grow
from paceline.tree import TokenTree, check

VOCAB = 4
Path = tuple[int, ...]


@dataclass
class Language:
    """Log-probabilities of tokens after any path, from a seed; a path's row is a function of the path alone.

    `coarse` makes equal probabilities, and ones of 0 and 1, common.
    """

    seed: int
    coarse: bool = False
    rows: dict[Path, NDArray[np.float64]] = field(default_factory=dict)

    def row(self, path: Path) -> NDArray[np.float64]:
        if path not in self.rows:
            random = np.random.default_rng([self.seed, *path, len(path)])
            weights = random.integers(0, 3, VOCAB).astype(float) if self.coarse else random.random(VOCAB)
            if not weights.sum():
                weights[0] = 1.0
            with np.errstate(divide="ignore"):
                self.rows[path] = np.log(weights / weights.sum())
        return self.rows[path]

    def survival(self, path: Path) -> float:
        return sum(float(self.row(path[:place])[token]) for place, token in enumerate(path))


@dataclass
class Below:
    """A language behind a path."""

    whole: Language
    path: Path

    def row(self, path: Path) -> NDArray[np.float64]:
        return self.whole.row((*self.path, *path))


@dataclass
class Walker:
    """Gives candidates of several sessions' languages; notes how many rows it was asked for in each call."""

    languages: Sequence[Language | Below]
    children: int = VOCAB
    paths: dict[int, list[Path]] = field(default_factory=dict)
    calls: list[dict[int, int]] = field(default_factory=list)

    def __call__(self, levels: Sequence[Level]) -> list[Candidates]:
        self.calls.append({level.tree: max(1, len(level.tokens)) for level in levels})
        return [self._candidates(level) for level in levels]

    def _candidates(self, level: Level) -> Candidates:
        known = self.paths.setdefault(level.tree, [])
        rows: list[Path] = []
        for token, parent in zip(level.tokens, level.parents, strict=True):
            rows.append((*(known[parent] if parent >= 0 else ()), token))
        assert [len(path) for path in rows or [()]] == list(level.depths)
        known += rows
        ids, log_probs = [], []
        for path in rows or [()]:
            row = self.languages[level.tree].row(path)
            best = np.argsort(-row, kind="stable")[: self.children]
            ids.append(best)
            log_probs.append(row[best])
        return Candidates(np.array(ids), np.array(log_probs))


def trees_of(
    languages: Sequence[Language | Below], bounds: Sequence[Bounds], children: int = VOCAB
) -> list[TokenTree]:
    return grow([Growth(bound) for bound in bounds], Walker(languages, children))


def paths_of(tree: TokenTree) -> list[Path]:
    paths: list[Path] = []
    for token, parent in zip(tree.tokens, tree.parents, strict=True):
        paths.append((*(paths[parent] if parent >= 0 else ()), token))
    return paths


def by_definition(language: Language, bounds: Bounds, children: int) -> list[Path]:
    """EAGLE-2 as the paper has it: every level is grown, then the pool is ranked."""
    pool: list[Path] = []
    level: list[Path] = [()]
    for _ in range(bounds.depth):
        newest: list[Path] = []
        for path in level:
            row = language.row(path)
            best = np.argsort(-row, kind="stable")[:children]
            newest += [(*path, token) for token in best.tolist() if row[token] > -math.inf]
        pool += newest
        level = sorted(newest, key=lambda path: -language.survival(path))[: bounds.width]
    return sorted(pool, key=lambda path: -language.survival(path))[: bounds.nodes]


BOUNDS = st.builds(Bounds, st.integers(0, 24), st.integers(0, 4), st.integers(1, 2 * VOCAB))
CHILDREN = st.integers(1, VOCAB)
LANGUAGES = st.builds(Language, st.integers(0, 2**32), st.booleans())


@given(sessions=st.lists(st.tuples(LANGUAGES, BOUNDS), max_size=4), children=CHILDREN)
def test_trees_are_legal_and_those_of_the_paper_whatever_else_is_in_the_batch(
    sessions: list[tuple[Language, Bounds]], children: int
) -> None:
    languages = [language for language, _ in sessions]
    bounds = [bound for _, bound in sessions]
    trees = trees_of(languages, bounds, children)
    for tree, language, bound in zip(trees, languages, bounds, strict=True):
        check(tree, vocab_size=VOCAB, max_nodes=bound.nodes, max_depth=max(bound.depth, 0))
        paths = paths_of(tree)
        assert sorted(paths) == sorted(by_definition(language, bound, children))
        assert tree.survivals() == pytest.approx([language.survival(path) for path in paths])


@given(language=LANGUAGES, nodes=st.integers(1, 40), depth=st.integers(1, 3))
@settings(max_examples=50)
def test_where_no_level_is_cut_no_other_tree_is_likelier(language: Language, nodes: int, depth: int) -> None:
    bounds = [Bounds(nodes, depth, VOCAB**depth)]
    [tree] = trees_of([language], bounds)
    every = (
        path for length in range(1, depth + 1) for path in itertools.product(range(VOCAB), repeat=length)
    )
    best = sorted((language.survival(path) for path in every), reverse=True)[:nodes]
    assert sorted(tree.survivals(), reverse=True) == pytest.approx(
        [value for value in best if value > -math.inf]
    )


@given(language=LANGUAGES, bound=BOUNDS)
def test_the_likeliest_path_comes_first(language: Language, bound: Bounds) -> None:
    [tree] = trees_of([language], [bound])
    survivals, node = tree.survivals(), -1
    for index in range(len(tree)):
        children = [child for child, parent in enumerate(tree.parents) if parent == node]
        if not children:
            break
        assert children[0] == index
        assert survivals[index] == max(survivals[child] for child in children)
        node = index


def test_levels_of_all_sessions_are_asked_for_together_and_end_when_nothing_more_could_stay() -> None:
    flat, sure = Language(1), Language(2)
    # Four tokens as likely as one another; and one token that is certain.
    for path in [(), *((token,) for token in range(VOCAB))]:
        flat.rows[path] = np.log(np.full(VOCAB, 0.25))
    for length in range(8):
        sure.rows[(3,) * length] = np.log([0.001, 0.001, 0.001, 0.997])
    bounds = [Bounds(4, 8, 4), Bounds(6, 8, 2), Bounds(0, 8, 2)]
    walker = Walker([flat, sure, flat])
    trees = grow([Growth(bound) for bound in bounds], walker)
    assert [len(tree) for tree in trees] == [4, 6, 0]
    assert trees[0].parents == (-1, -1, -1, -1)
    assert trees[1].tokens == (3,) * 6
    # The first tree is full with the root's children: none of its nodes is grown.
    assert walker.calls[0] == {0: 1, 1: 1}
    assert all(set(call) == {1} for call in walker.calls[1:])


def test_a_certain_child_that_rounding_left_above_zero_makes_a_legal_tree() -> None:
    def step(levels: Sequence[Level]) -> list[Candidates]:
        return [Candidates(np.array([[2]]), np.array([[1e-12]])) for _ in levels]

    [tree] = grow([Growth(Bounds(3, 3, 1))], step)
    check(tree, vocab_size=VOCAB, max_nodes=3, max_depth=3)
    assert tree.tokens == (2, 2, 2)


@given(language=LANGUAGES, first=BOUNDS, more=st.tuples(st.integers(0, 12), st.integers(0, 2)))
def test_a_larger_tree_goes_on_from_the_first_and_computes_nothing_twice(
    language: Language, first: Bounds, more: tuple[int, int]
) -> None:
    larger = Bounds(first.nodes + more[0], first.depth + more[1], first.width)
    growth, walker = Growth(first), Walker([language])
    grow([growth], walker)
    growth.enlarge(larger)
    [large] = grow([growth], walker)
    check(large, vocab_size=VOCAB, max_nodes=larger.nodes, max_depth=max(larger.depth, 0))
    assert len(set(walker.paths.get(0, []))) == len(walker.paths.get(0, []))
    # No worse than what the paper makes of these bounds from the start: it leaves nodes of cut levels alone.
    [anew] = trees_of([language], [larger])
    pairs = zip(*(sorted(tree.survivals(), reverse=True) for tree in (large, anew)), strict=False)
    assert len(large) >= len(anew)
    assert all(one >= other - 1e-9 for one, other in pairs)


@given(language=LANGUAGES, bound=BOUNDS, data=st.data())
def test_a_rerooted_growth_goes_on_like_one_that_began_there(
    language: Language, bound: Bounds, data: st.DataObject
) -> None:
    growth, walker = Growth(bound), Walker([language])
    [tree] = grow([growth], walker)
    path = data.draw(st.sampled_from([(), *paths_of(tree), (VOCAB,)]))
    rerooted = growth.reroot(path)
    grown = walker.paths.get(0, [])
    assert (rerooted is None) == (not walker.calls if path == () else path not in grown)
    if rerooted is None:
        return
    part, numbers = rerooted
    assert [grown[number] for number in numbers] == [
        longer for longer in grown if longer[: len(path)] == path != longer
    ]
    below = Below(language, path)
    part.enlarge(bound)
    later = Walker([below])
    later.paths[0] = [grown[number][len(path) :] for number in numbers]
    [moved] = grow([part], later)
    check(moved, vocab_size=VOCAB, max_nodes=bound.nodes, max_depth=bound.depth)
    assert len(set(later.paths[0])) == len(later.paths[0])
    [anew] = trees_of([below], [bound])
    pairs = zip(*(sorted(each.survivals(), reverse=True) for each in (moved, anew)), strict=False)
    assert len(moved) >= len(anew)
    assert all(one >= other - 1e-9 for one, other in pairs)
