"""The cost of a step, T(rows, blocks): measured at the start and refined by every step since."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

# Row counts at which kernels change: T is a staircase, and only these are measured and chosen.
EDGES = (1, 2, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256)
# Variances of the logarithm of a step's seconds (0.01: errors of about a tenth). Of a single step about its
# width's mean:
_STEP = 0.0225
# Of the first measurement, which may have been taken while other services were starting: an error of all
# widths, one that neighbours share, and one of a width alone. The last is the largest: what was timed wrongly
# says little of others.
_FIRST = (0.01, 0.02, 0.08)
# The same of what is known, in the long run, without steps that tell: here what all widths share is the
# largest. Where a width that is known has changed, the whole machine mostly has, its memory or its clock.
_LATER = (0.08, 0.0005, 0.001)
# How fast the one becomes the other, a step. In the long run a step's error then counts for a sixteenth.
_FADING = 1e-3
# Widths of which one has twice the other's rows are neighbours, in this sense.
_REACH = 1.0
# A step counts as at most this many times its expected seconds, and makes its width at most so much dearer: a
# single stall, of the machine or of the interpreter, teaches nothing. Nothing makes a step too short.
_STALL, _MOST_DEARER = 2.0, 1.14
# No step counts as shorter than this share of the first measurement, whatever its blocks are taken to cost.
_LEAST_SHARE = 0.2


class StepCost:
    """T(rows, blocks) = T(rows) at the next edge + blocks * seconds per block of KV that is read.

    After TurboSpec (arXiv 2406.14066), which fits one slope to the rows: on real machines the rows are a
    staircase, so here every edge has its own mean. They are estimated together, by a Kalman filter of their
    logarithms: how far a step corrects its own edge, and the others, follows from how well each is known.
    Forced monotone: a wider step never counts as cheaper. Where estimates say otherwise, the better known
    counts for more.
    """

    def __init__(
        self,
        rows: Mapping[int, float],
        per_block: float,
        per_row_and_block: float = 0.0,
        per_logits: float = 0.0,
    ) -> None:
        """`rows`: seconds of a step over one block of KV at each edge that was measured, logits of every row.

        `per_block`: seconds for one more block that one row reads; `per_row_and_block`: for each row of a
        long prompt and each block before it; `per_logits`: for the logits of a row, which prompts lack.
        """
        measured = dict(sorted((rows or {1: 1.0}).items()))
        self._edges = list(measured)
        self._least = [_LEAST_SHARE * seconds for seconds in measured.values()]
        self._logs = np.log(list(measured.values()))
        # Covariances [edges, edges] of the errors of `_logs`, and what they fade to.
        self._errors = _covariances(self._edges, *_FIRST)
        self._faded = _covariances(self._edges, *_LATER)
        self._seconds = self._monotone()
        self._per_block = max(0.0, per_block)
        self._per_row_and_block = max(0.0, per_row_and_block)
        self._per_logits = max(0.0, per_logits)

    @property
    def edges(self) -> Sequence[int]:
        """Rows that were measured, ascending."""
        return self._edges

    def seconds(self, rows: int, blocks: int) -> float:
        """Predicted seconds of `rows` rows over `blocks` KV blocks; past the last edge in proportion."""
        place = bisect_left(self._edges, rows)
        if place < len(self._edges):
            step = self._seconds[place]
        else:
            step = self._seconds[-1] * rows / self._edges[-1]
        return step + self._per_block * max(0, blocks - 1)

    def prompt_seconds(self, rows: int, blocks: int, *, prompt_rows: int, prompt_blocks: int) -> float:
        """Predicted seconds of a step with `prompt_rows` of a prompt too, behind `prompt_blocks` of it."""
        more = self._of_prompts(prompt_rows, prompt_rows * prompt_blocks)
        return max(self.seconds(rows, blocks), self.seconds(rows + prompt_rows, blocks) + more)

    def observe(
        self, rows: int, blocks: int, seconds: float, *, prompt_rows: int = 0, row_blocks: int = 0
    ) -> None:
        """Refine by a measured step; `row_blocks`: the blocks before each row of a prompt, summed."""
        edge = bisect_left(self._edges, rows + prompt_rows)
        if edge == len(self._edges):
            return
        seconds -= self._per_block * max(0, blocks - 1) + self._of_prompts(prompt_rows, row_blocks)
        error = math.log(max(seconds, self._least[edge])) - float(self._logs[edge])
        error = min(error, math.log(_STALL))
        self._errors += _FADING * (self._faded - self._errors)
        shared = self._errors[:, edge].copy()
        spread = float(shared[edge]) + _STEP
        # How much of it counts, where its own width would become dearer by too much.
        part = min(1.0, math.log(_MOST_DEARER) * spread / (float(shared[edge]) * error)) if error > 0 else 1.0
        self._logs += part * error / spread * shared
        self._errors -= part * (2 - part) / spread * np.outer(shared, shared)
        self._seconds = self._monotone()

    def _monotone(self) -> list[float]:
        """Seconds of each edge: those that would descend are taken together, each as far as it is known."""
        # Of each group its mean, weight and number of edges.
        groups: list[tuple[float, float, int]] = []
        for log, weight in zip(self._logs.tolist(), (1 / self._errors.diagonal()).tolist(), strict=True):
            group = log, weight, 1
            while groups and groups[-1][0] > group[0]:
                mean, total, count = groups.pop()
                both = total + group[1]
                group = (total * mean + group[1] * group[0]) / both, both, count + group[2]
            groups.append(group)
        return [math.exp(mean) for mean, _, count in groups for _ in range(count)]

    def _of_prompts(self, rows: int, row_blocks: int) -> float:
        """Seconds that rows of prompts take more than other rows."""
        return self._per_row_and_block * row_blocks - self._per_logits * rows


def _covariances(edges: Sequence[int], all_: float, near: float, alone: float) -> NDArray[np.float64]:
    """Of errors that all edges share, that neighbours share, and that are each edge's alone."""
    octaves = np.log2(np.asarray(edges, dtype=np.float64))
    apart = (octaves[:, None] - octaves[None, :]) / _REACH
    return all_ + near * np.exp(-(apart**2) / 2) + alone * np.eye(len(edges))
