"""How likely a drafted node is to be accepted: drafters' confidences, corrected by what came of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from paceline.tree import TokenTree

_BINS = 16
_DEPTHS = 4
# Observations that a drafter's own confidence counts as.
_PRIOR = 8.0
# Counts above this are halved, so that old observations fade.
_FORGET = 400.0
# The lowest probability, so that logarithms stay finite.
_LEAST = 1e-6


def _bin(log_prob: float) -> int:
    """Half powers of two: 1 .. 0.71 is bin 0, .. 0.5 bin 1."""
    return min(_BINS - 1, int(-log_prob * 2 / math.log(2)))


@dataclass(slots=True)
class DrafterCalibration:
    """One drafter's P(node accepted | parent accepted), by the node's confidence and depth.

    Each bin, [depth 1, 2, 3, deeper][confidence], has the mean of a beta distribution.
    """

    _seen: list[list[float]] = field(default_factory=lambda: [[0.0] * _BINS for _ in range(_DEPTHS)])
    _accepted: list[list[float]] = field(default_factory=lambda: [[0.0] * _BINS for _ in range(_DEPTHS)])

    def calibrated(self, tree: TokenTree) -> TokenTree:
        """`tree` with corrected confidences."""
        log_probs: list[float] = []
        for log_prob, depth in zip(tree.log_probs, tree.depths(), strict=True):
            place, level = _bin(log_prob), min(depth, _DEPTHS) - 1
            seen, accepted = self._seen[level][place], self._accepted[level][place]
            mean = (_PRIOR * math.exp(log_prob) + accepted) / (_PRIOR + seen)
            log_probs.append(math.log(min(1.0, max(mean, _LEAST))))
        return replace(tree, log_probs=tuple(log_probs))

    def observe(self, tree: TokenTree, path: Sequence[int]) -> None:
        """Learn from a verified tree (with the drafter's own confidences) and its accepted nodes."""
        reached = {-1, *path}
        accepted = set(path)
        for node, (parent, depth) in enumerate(zip(tree.parents, tree.depths(), strict=True)):
            # Below a rejected node nothing was learned.
            if parent not in reached:
                continue
            place, level = _bin(tree.log_probs[node]), min(depth, _DEPTHS) - 1
            self._seen[level][place] += 1
            self._accepted[level][place] += node in accepted
            if self._seen[level][place] > _FORGET:
                self._seen[level][place] /= 2
                self._accepted[level][place] /= 2
