"""The walk against a plain recursive one, and what it asks of the target."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from paceline.engine.accept import Walk, walk


@dataclass(frozen=True)
class Forest:
    """Several sessions' trees laid end to end, and the target's token of every row."""

    tokens: list[int]
    parents: list[int]
    roots: list[int]
    drawn: list[int]


@st.composite
def forests(draw: st.DrawFn) -> Forest:
    tokens: list[int] = []
    parents: list[int] = []
    roots: list[int] = []
    # Few tokens, so that paths match.
    token = st.integers(0, draw(st.sampled_from([1, 3, 2**31])))
    for _ in range(draw(st.integers(0, 5))):
        root = len(tokens)
        roots.append(root)
        tokens.append(draw(token))
        parents.append(-1)
        siblings: set[tuple[int, int]] = set()
        for _ in range(draw(st.integers(0, 10))):
            parent, child = draw(st.integers(root, len(tokens) - 1)), draw(token)
            if (parent, child) not in siblings:
                siblings.add((parent, child))
                tokens.append(child)
                parents.append(parent)
    return Forest(tokens, parents, roots, [draw(token) for _ in tokens])


def _step(forest: Forest, row: int) -> Walk:
    for child, (token, parent) in enumerate(zip(forest.tokens, forest.parents, strict=True)):
        if parent == row and token == forest.drawn[row]:
            rest = _step(forest, child)
            return Walk([child, *rest.rows], rest.bonus)
    return Walk([], forest.drawn[row])


@given(forest=forests())
@settings(max_examples=300)
def test_against_a_recursive_walk_and_only_accepted_rows_are_drawn(forest: Forest) -> None:
    asked: list[int] = []

    def draw(rows: list[int]) -> list[int]:
        asked.extend(rows)
        return [forest.drawn[row] for row in rows]

    walks = walk(
        np.array(forest.tokens, dtype=np.int64), np.array(forest.parents, dtype=np.int64), forest.roots, draw
    )
    assert walks == [_step(forest, root) for root in forest.roots]
    on_paths = [row for root, walked in zip(forest.roots, walks, strict=True) for row in [root, *walked.rows]]
    assert sorted(asked) == sorted(on_paths)


def test_every_level_is_asked_in_one_call() -> None:
    calls: list[list[int]] = []

    def draw(rows: list[int]) -> list[int]:
        calls.append(rows)
        return [7] * len(rows)

    tokens, parents = np.array([1, 7, 7, 2, 7]), np.array([-1, 0, 1, -1, 3])
    assert walk(tokens, parents, [0, 3], draw) == [Walk([1, 2], 7), Walk([4], 7)]
    assert calls == [[0, 3], [1, 4], [2]]
