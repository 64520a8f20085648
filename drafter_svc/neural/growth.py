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


@dataclass(frozen=True, slots=True)
class Bounds:
    """Bounds of one session's tree; `top_k` bounds the children of a node and the nodes grown of a level."""

    nodes: int
    depth: int
    top_k: int


@dataclass(frozen=True, slots=True)
class Level:
    """Nodes of one session's tree, or its root, whose children are asked for.

    The root has no row here: `depth` is 0, and there is one row of candidates to give. Nodes are numbered in
    the order in which the session's levels hold them; `parents` are such numbers, -1 the root.
    """

    # Which of the bounds given to `grow` is this session's.
    session: int
    depth: int
    tokens: tuple[int, ...] = ()
    parents: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Candidates:
    """Children of a level's nodes, a row for each node: ids and log-probabilities [rows, top_k].

    The best come first; minus infinity stands for none. Ids of a row differ.
    """

    ids: NDArray[np.int64]
    log_probs: NDArray[np.float64]


# The candidates of each level, in order.
Step: TypeAlias = Callable[[Sequence[Level]], Sequence[Candidates]]


def grow(bounds: Sequence[Bounds], step: Step) -> list[TokenTree]:
    """A tree for each session, likeliest path first. `step` is called once for each level of all trees."""
    pools = [_Pool(bound) for bound in bounds]
    levels = [Level(session, 0) for session, bound in enumerate(bounds) if min(bound.nodes, bound.depth) > 0]
    while levels:
        for level, found in zip(levels, step(levels), strict=True):
            pools[level.session].add(found)
        grown = (pools[level.session].next_level(level) for level in levels)
        levels = [level for level in grown if level is not None]
    return [pool.tree() for pool in pools]


class _Pool:
    """All candidates of one session, and which of them were grown."""

    def __init__(self, bounds: Bounds) -> None:
        self._bounds = bounds
        self._tokens = np.empty(0, dtype=np.int64)
        # Indices into the pool; -1 is the root.
        self._parents = np.empty(0, dtype=np.int64)
        self._log_probs = np.empty(0)
        self._survivals = np.empty(0)
        # Pool index and number of the nodes that were grown.
        self._numbers = {-1: -1}
        # Those of the last level, and their survivals.
        self._last, self._above = np.array([-1]), np.zeros(1)
        # Where the newest level's candidates begin.
        self._newest = 0

    def add(self, found: Candidates) -> None:
        """Take in the children of the last level's nodes."""
        # Rounding may leave a certain child a little above 0, or without a sign.
        log_probs = np.minimum(found.log_probs, 0.0) + 0.0
        row, place = np.nonzero(np.isfinite(log_probs))
        self._newest = len(self._tokens)
        self._tokens = np.append(self._tokens, found.ids[row, place])
        self._parents = np.append(self._parents, self._last[row])
        self._log_probs = np.append(self._log_probs, log_probs[row, place])
        self._survivals = np.append(self._survivals, self._above[row] + log_probs[row, place])

    def next_level(self, level: Level) -> Level | None:
        """The newest candidates of highest survival, except those whose children could not stay."""
        if level.depth + 1 >= self._bounds.depth:
            return None
        newest = np.arange(self._newest, len(self._tokens))
        chosen = newest[_ranked(self._survivals[newest], self._bounds.top_k)]
        chosen = chosen[self._survivals[chosen] > self._floor()]
        if not len(chosen):
            return None
        first = len(self._numbers) - 1
        parents = tuple(self._numbers[parent] for parent in self._parents[chosen].tolist())
        self._numbers |= {node: first + order for order, node in enumerate(chosen.tolist())}
        self._last, self._above = chosen, self._survivals[chosen]
        return Level(level.session, level.depth + 1, tuple(self._tokens[chosen].tolist()), parents)

    def tree(self) -> TokenTree:
        """The candidates of highest survival, the earlier and so the shallower of equals."""
        kept = np.sort(_ranked(self._survivals, self._bounds.nodes))
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
