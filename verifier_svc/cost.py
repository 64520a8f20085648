"""The cost of a step, T(rows, blocks): measured at the start and refined by every step since."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping

# Row counts at which kernels change: T is a staircase, and only these are measured and chosen.
EDGES = (1, 2, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256)
# Share of a new step's error by which its own edge is corrected, and of that the least that is its own alone.
# The rest corrects every edge: where a width that is known has changed, the whole machine mostly has, its
# memory or its clock.
_WEIGHT, _OWN_WEIGHT = 0.06, 0.01
# The first measurement was taken while other services were starting: it weighs as much as this many steps.
_TIMED_STEPS = 8
# A step counts as at most this many times its expected seconds: a single stall, of the machine or of the
# interpreter, teaches nothing.
_STALL = 2.0
# No step counts as shorter than this share of the first measurement, whatever its blocks are taken to cost.
_LEAST_SHARE = 0.2


class StepCost:
    """T(rows, blocks) = T(rows) at the next edge + blocks * seconds per block of KV that is read.

    After TurboSpec (arXiv 2406.14066), which fits one slope to the rows: on real machines the rows are a
    staircase, so here every edge has its own mean. A width that is known and becomes slower says so of all.
    Forced monotone: a wider step never counts as cheaper.
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
        self._rows = dict(rows) or {1: 1.0}
        self._least = {edge: _LEAST_SHARE * seconds for edge, seconds in self._rows.items()}
        # Steps that each edge was corrected by.
        self._seen = dict.fromkeys(self._rows, 0)
        self._per_block = max(0.0, per_block)
        self._per_row_and_block = max(0.0, per_row_and_block)
        self._per_logits = max(0.0, per_logits)

    @property
    def edges(self) -> list[int]:
        """Rows that were measured, ascending."""
        return sorted(self._rows)

    def seconds(self, rows: int, blocks: int) -> float:
        """Predicted seconds of `rows` rows over `blocks` KV blocks; past the last edge in proportion."""
        edges = self.edges
        place = bisect_left(edges, rows)
        # The most that any edge up to this one takes.
        step = max(self._rows[edge] for edge in edges[: place + 1])
        if place == len(edges):
            step *= rows / edges[-1]
        return step + self._per_block * max(0, blocks - 1)

    def prompt_seconds(self, rows: int, blocks: int, *, prompt_rows: int, prompt_blocks: int) -> float:
        """Predicted seconds of a step with `prompt_rows` of a prompt too, behind `prompt_blocks` of it."""
        more = self._of_prompts(prompt_rows, prompt_rows * prompt_blocks)
        return max(self.seconds(rows, blocks), self.seconds(rows + prompt_rows, blocks) + more)

    def observe(
        self, rows: int, blocks: int, seconds: float, *, prompt_rows: int = 0, row_blocks: int = 0
    ) -> None:
        """Refine by a measured step; `row_blocks`: the blocks before each row of a prompt, summed."""
        edges = self.edges
        place = bisect_left(edges, rows + prompt_rows)
        if place == len(edges):
            return
        edge = edges[place]
        seconds -= self._per_block * max(0, blocks - 1) + self._of_prompts(prompt_rows, row_blocks)
        error = min(max(seconds, self._least[edge]) / self._rows[edge], _STALL)
        own = max(_OWN_WEIGHT, 1 / (_TIMED_STEPS + self._seen[edge]))
        shared = max(0.0, _WEIGHT - own)
        self._seen[edge] += 1
        # Were only its own corrected, widths that were last taken in a slow hour would look dear for ever. In
        # proportion: errors that even out for one width do so for those that are not taken.
        for each in edges:
            self._rows[each] *= error**shared
        self._rows[edge] *= error**own

    def _of_prompts(self, rows: int, row_blocks: int) -> float:
        """Seconds that rows of prompts take more than other rows."""
        return self._per_row_and_block * row_blocks - self._per_logits * rows
