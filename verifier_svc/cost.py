"""What a step costs: T(rows, blocks), measured at the start and refined by every step since."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping

# Row counts at which kernels change: T is a staircase, and only these are measured and chosen.
EDGES = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256)
# Share of a new step in the running mean of its edge.
_WEIGHT = 0.05


class StepCost:
    """T(rows, blocks) = T(rows) at the next edge + blocks * seconds per block of KV that is read.

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
        return step + self._per_block * max(0, blocks - 1)

    def prompt_seconds(self, rows: int, blocks: int, *, prompt_rows: int, prompt_blocks: int) -> float:
        """A step that also computes rows of a prompt behind so many blocks of it."""
        attention = self._per_row_and_block * prompt_rows * prompt_blocks
        return self.seconds(rows + prompt_rows, blocks) + attention

    def observe(self, rows: int, blocks: int, seconds: float) -> None:
        """Refine by a step that was taken."""
        edges = self.edges
        place = bisect_left(edges, rows)
        if place == len(edges):
            return
        edge = edges[place]
        # One stall, the machine's or the interpreter's, is no news.
        seen = min(seconds - self._per_block * max(0, blocks - 1), 3 * self._rows[edge])
        self._rows[edge] += _WEIGHT * (max(seen, 0.0) - self._rows[edge])
