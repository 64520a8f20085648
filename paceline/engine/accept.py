"""The walk: from the root, step to the child that equals the target's own token, while there is one.

Sample-match acceptance. The drafter's probabilities are not used: nothing that it sends can bias the text.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Walk:
    """One session's outcome: the rows it stepped to, in order, and the target's token after them."""

    rows: list[int]
    bonus: int


def walk(
    tokens: NDArray[np.int64],
    parents: NDArray[np.int64],
    roots: Sequence[int],
    draw: Callable[[list[int]], list[int]],
) -> list[Walk]:
    """Walk all sessions' trees level by level.

    `tokens` and `parents` [rows] describe every session's root row (parent -1) and nodes (parent: a
    row); `roots` are the sessions' root rows. `draw(rows)` gives the target's token of those rows; it
    is asked for the rows on accepted paths only. O(rows log rows), one pass of numpy per level.
    """
    edges = (parents.astype(np.int64) << 32) | tokens
    order = np.argsort(edges, kind="stable")
    ranked = edges[order]
    paths: list[list[int]] = [[] for _ in roots]
    bonus = [0] * len(roots)
    walkers = list(range(len(roots)))
    current = list(roots)
    while walkers:
        drawn = draw(current)
        wanted = (np.asarray(current, dtype=np.int64) << 32) | np.asarray(drawn, dtype=np.int64)
        found = np.searchsorted(ranked, wanted)
        stepping: list[int] = []
        reached: list[int] = []
        for walker, token, place, edge in zip(walkers, drawn, found.tolist(), wanted.tolist(), strict=True):
            if place < len(ranked) and ranked[place] == edge:
                row = int(order[place])
                paths[walker].append(row)
                stepping.append(walker)
                reached.append(row)
            else:
                bonus[walker] = token
        walkers, current = stepping, reached
    return [Walk(path, token) for path, token in zip(paths, bonus, strict=True)]
