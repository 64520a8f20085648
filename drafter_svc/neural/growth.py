"""EAGLE-2's trees: grown level by level below the likeliest nodes, then cut to the likeliest of all.

Li et al., "EAGLE-2: Faster Inference of Language Models with Dynamic Draft Trees", 2024, section 4. A node's
survival is the sum of the log-probabilities along its path. Nothing here knows where those come from.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from paceline.tree import TokenTree

# Most children of a node, and nodes of a level that are grown. Both are 10 in EAGLE-2, for trees of 60 nodes.
# A child that is no node in the end costs next to nothing, and one that is missing is made up for by a level.
# Measured with the head of the default model, trees of 31 nodes and recorded answers to Spec-Bench: chosen on
# twelve questions (8 and 8: 1.80 tokens a step in 4.4 passes; 8 and 4: 1.77; 16 and 6: 1.82; 24 and 4: 1.83;
# 24 and 6: 1.84 in 4.0; 31 and 8: 1.84), and on twelve others 1.83 in 3.9, where 8 and 8 have 1.78 in 4.3.
# Beside the text only the passes are fewer: 2.79 and 2.80 tokens a step on the two halves, and 2.77 and
# 2.86 with 8 and 8. Trees of 62 nodes alone have 1.92 (8 and 8: 1.86), of 14 nodes 1.69 with both.
CHILDREN, WIDTH = 24, 6


@dataclass(frozen=True, slots=True)
class Bounds:
    """Bounds of one session's tree; at most `width` nodes are grown of a level.

    How many children a node gets is for whoever gives the candidates to say.
    """

    nodes: int
    depth: int
    width: int


@dataclass(frozen=True, slots=True)
class Level:
    """Nodes of one tree, or its root, whose children are asked for: a row for each.

    The root is a row at depth 0 without token and parent. Nodes are numbered in the order in which the tree's
    levels hold them; `parents` are such numbers, -1 the root.
    """

    # Which of the trees given to `grow`.
    tree: int
    depths: tuple[int, ...] = (0,)
    tokens: tuple[int, ...] = ()
    parents: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Candidates:
    """Children of a level's nodes, a row for each node: ids and log-probabilities [rows, children].

    The best come first; minus infinity stands for none. Ids of a row differ.
    """

    ids: NDArray[np.int64]
    log_probs: NDArray[np.float64]


# No children for any node.
NOTHING = Candidates(np.empty((0, 0), dtype=np.int64), np.empty((0, 0)))

# The candidates of each level, in order.
Step: TypeAlias = Callable[[Sequence[Level]], Sequence[Candidates]]


def grow(growths: Sequence[Growth], step: Step) -> list[TokenTree]:
    """A tree of each, likeliest path first. `step` is called once for each level of all trees."""
    levels = [level for tree, growth in enumerate(growths) if (level := growth.next_level(tree)) is not None]
    while levels:
        for level, found in zip(levels, step(levels), strict=True):
            growths[level.tree].add(found)
        following = (growths[level.tree].next_level(level.tree) for level in levels)
        levels = [level for level in following if level is not None]
    return [growth.tree() for growth in growths]


class Growth:
    """All candidates of one tree, and which of them were grown. With larger bounds it goes on."""

    def __init__(self, bounds: Bounds) -> None:
        self._bounds = bounds
        self._tokens = np.empty(0, dtype=np.int64)
        # Indices into the candidates; -1 is the root.
        self._parents = np.empty(0, dtype=np.int64)
        self._depths = np.empty(0, dtype=np.int64)
        self._log_probs = np.empty(0)
        self._survivals = np.empty(0)
        # Index and number of the nodes that were grown.
        self._numbers: dict[int, int] = {}
        # The nodes of the last level, their survivals and depths.
        self._last, self._above, self._below = np.array([-1]), np.zeros(1), np.zeros(1, dtype=np.int64)
        # Where the newest level's candidates begin, and whether others may be grown next.
        self._newest, self._enlarged = 0, False

    def enlarge(self, bounds: Bounds) -> None:
        """Go on with these bounds. What did not pay within the last ones may now be grown, on any level."""
        self._bounds = bounds
        self._enlarged = True

    def reroot(self, committed: Sequence[int]) -> tuple[Growth, list[int]] | None:
        """The part below the node that `committed` leads to, and the numbers of its nodes that were grown.

        None where that node is not there or was not grown itself.
        """
        root = -1
        for token in committed:
            (found,) = np.nonzero((self._parents == root) & (self._tokens == token))
            if not len(found):
                return None
            root = int(found[0])
        if root not in self._numbers:
            return None
        place = {root: -1}
        kept: list[int] = []
        for node, parent in enumerate(self._parents.tolist()):
            if parent in place:
                place[node] = len(kept)
                kept.append(node)
        part = Growth(self._bounds)
        part._tokens, part._log_probs = self._tokens[kept], self._log_probs[kept]
        part._parents = np.array([place[parent] for parent in self._parents[kept].tolist()], dtype=np.int64)
        part._depths = self._depths[kept] - len(committed)
        above = self._survivals[root] if root >= 0 else 0.0
        part._survivals = self._survivals[kept] - above
        grown = [node for node in self._numbers if node in place and node != root]
        part._numbers = {-1: -1} | {place[node]: number for number, node in enumerate(grown)}
        part._enlarged = True
        return part, [self._numbers[node] for node in grown]

    def next_level(self, tree: int) -> Level | None:
        """The root, then the likeliest of the newest candidates, except those whose children could not stay.

        None: nothing more. `add` has to follow a level.
        """
        if min(self._bounds.nodes, self._bounds.depth) < 1:
            return None
        if not self._numbers:
            self._numbers[-1] = -1
            return Level(tree)
        open_ = np.arange(0 if self._enlarged else self._newest, len(self._tokens))
        open_ = open_[(self._survivals[open_] > self._floor()) & (self._depths[open_] < self._bounds.depth)]
        open_ = open_[[node not in self._numbers for node in open_.tolist()]]
        chosen = open_[_ranked(self._survivals[open_], self._bounds.width)]
        if not len(chosen):
            return None
        first = len(self._numbers) - 1
        self._last, self._above, self._below = chosen, self._survivals[chosen], self._depths[chosen]
        self._numbers |= {node: first + order for order, node in enumerate(chosen.tolist())}
        return Level(
            tree,
            tuple(self._below.tolist()),
            tuple(self._tokens[chosen].tolist()),
            tuple(self._numbers[parent] for parent in self._parents[chosen].tolist()),
        )

    def add(self, found: Candidates) -> None:
        """Take in the children of the last level's nodes."""
        # Rounding may leave a certain child a little above 0, or without a sign.
        log_probs = np.minimum(found.log_probs, 0.0) + 0.0
        row, place = np.nonzero(np.isfinite(log_probs))
        self._newest = len(self._tokens)
        self._tokens = np.append(self._tokens, found.ids[row, place])
        self._parents = np.append(self._parents, self._last[row])
        self._depths = np.append(self._depths, self._below[row] + 1)
        self._log_probs = np.append(self._log_probs, log_probs[row, place])
        self._survivals = np.append(self._survivals, self._above[row] + log_probs[row, place])

    def tree(self) -> TokenTree:
        """The candidates of highest survival, the earlier of equals."""
        kept = np.flatnonzero(self._depths <= self._bounds.depth)
        kept = np.sort(kept[_ranked(self._survivals[kept], self._bounds.nodes)])
        # Survival never grows along a path, so each node's parent is kept, too.
        place = {-1: -1} | {node: index for index, node in enumerate(kept.tolist())}
        return TokenTree(
            tokens=tuple(self._tokens[kept].tolist()),
            parents=tuple(place[parent] for parent in self._parents[kept].tolist()),
            log_probs=tuple(self._log_probs[kept].tolist()),
        ).best(len(kept))

    def _floor(self) -> float:
        """A candidate that comes later stays in the tree only with a higher survival than this."""
        if len(self._survivals) < self._bounds.nodes:
            return -np.inf
        return float(np.partition(self._survivals, -self._bounds.nodes)[-self._bounds.nodes])


def _ranked(survivals: NDArray[np.float64], count: int) -> NDArray[np.int64]:
    """Indices of the `count` highest, the highest first; of equals the first."""
    return np.argsort(-survivals, kind="stable")[:count]
