"""What a step costs: T(rows, blocks), measured at the start and refined by every step since."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping

# Row counts at which kernels change: T is a staircase, and only these are measured and chosen.
EDGES = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256)
# Shares of a step's surprise in what all widths have in common and in its own width.
_COMMON_WEIGHT = 0.1
_EDGE_WEIGHT = 0.05


class StepCost:
    """T(rows, blocks) = T(rows) at the next edge + blocks * seconds per block of KV + what all steps share.

    After TurboSpec (arXiv 2406.14066), which fits one slope to the rows: on real machines the rows are a
    staircase, so here every edge has its own mean. Forced monotone: a wider step never counts as cheaper.
    """

    def __init__(self, rows: Mapping[int, float], per_block: float, per_row_and_block: float = 0.0) -> None:
        """`rows`: seconds of a step over one block of KV at each edge that was measured.

        `per_block`: for a block more that one row reads; `per_row_and_block`: for each row of a long prompt
        and each block before it.
        """
        self._rows = dict(rows) or {1: 1.0}
        self._per_block = max(0.0, per_block)
        self._per_row_and_block = max(0.0, per_row_and_block)
        self._overhead = 0.0

    @property
    def edges(self) -> list[int]:
        """Rows that were measured, ascending."""
        return sorted(self._rows)

    def seconds(self, rows: int, blocks: int) -> float:
        """What a step of so many rows over so many blocks takes. Beyond the last edge by proportion."""
        edges = self.edges
        place = bisect_left(edges, rows)
        # The most that any edge up to this one takes.
        step = max(self._rows[edge] for edge in edges[: place + 1])
        if place == len(edges):
            step *= rows / edges[-1]
        return max(1e-6, step + self._per_block * max(0, blocks - 1) + self._overhead)

    def prompt_seconds(self, rows: int, blocks: int, *, prompt_rows: int, prompt_blocks: int) -> float:
        """A step that also computes rows of a prompt behind so many blocks of it."""
        attention = self._per_row_and_block * prompt_rows * prompt_blocks
        return self.seconds(rows + prompt_rows, blocks) + attention

    def observe(self, rows: int, blocks: int, seconds: float) -> None:
        """Refine by a step that was taken.

        Most of what a step takes longer than at the start, it would take with any number of rows: more
        sessions, a busier machine. That is learned first; what is special to a width, slowly.
        """
        expected = self.seconds(rows, blocks)
        # One stall, the machine's or the interpreter's, is no news.
        surprise = max(min(seconds, 3 * expected) - expected, -expected)
        self._overhead += _COMMON_WEIGHT * surprise
        edges = self.edges
        place = bisect_left(edges, rows)
        if place < len(edges):
            self._rows[edges[place]] = max(0.0, self._rows[edges[place]] + _EDGE_WEIGHT * surprise)
