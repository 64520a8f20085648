"""The ragged batch: rows of many sessions laid end to end, none padded to another's length."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Segment:
    """One session's rows in one forward: a run of consecutive positions, then a draft tree.

    The run is a prefill chunk or the single row of the last committed token (the tree's root).
    `tree_parents` index the tree's own nodes; -1 is the last row of the run. `blocks` is the session's
    block table and covers the run's positions and, behind them, one slot per tree node.

    `hidden` are indices before `start`, ascending, of keys that are no part of the text: no row sees them and
    they have no position. A session has none; methods that pad do (`bench.padding`).
    """

    run: Sequence[int]
    start: int
    blocks: Sequence[int]
    tree_tokens: Sequence[int] = ()
    tree_parents: Sequence[int] = ()
    wants_logits: bool = True
    hidden: Sequence[int] = ()

    @property
    def num_rows(self) -> int:
        """Rows this segment adds to the batch."""
        return len(self.run) + len(self.tree_tokens)

    @property
    def root_index(self) -> int:
        """Which of the session's keys is that of the run's last row: its position, where none is hidden."""
        return self.start + len(self.run) - 1

    def slot(self, index: int, block_size: int) -> int:
        """Pool slot of the `index`-th key this segment's rows may see.

        Up to the root that is the key of that position, where none is hidden; node i of the tree waits at
        root + 1 + i, where it already belongs if the first child of every node is accepted.
        """
        return self.blocks[index // block_size] * block_size + index % block_size


@dataclass(frozen=True, slots=True)
class PlacedSegment:
    """A segment with its place in the batch and what attention needs of it."""

    segment: Segment
    # First row of the segment in the batch.
    row: int
    # Absolute position of each row. [rows]
    positions: Tensor
    # Blocks of all keys the rows may see, in order of position: the tree's last.
    blocks: Sequence[int]

    @property
    def rows(self) -> slice:
        """The segment's rows in the batch."""
        return slice(self.row, self.row + self.segment.num_rows)


@dataclass(frozen=True, slots=True)
class RaggedBatch:
    """Everything one forward needs beside the weights."""

    token_ids: Tensor  # [rows] int64
    positions: Tensor  # [rows] int64
    segments: list[PlacedSegment]
    # Pool slot that each row's key and value go to. [rows]
    slots: Tensor
    # Rows whose logits are wanted, ascending. [logit rows]
    logit_rows: Tensor
    # Row of the parent of each logit row, -1 for a run's last row, as indices into logit_rows.
    logit_parents: Tensor
    # Index into logit_rows of each segment's root; -1 where the segment wants no logits.
    roots: Tensor

    @property
    def num_rows(self) -> int:
        """Rows of the forward."""
        return int(self.token_ids.numel())


def _positions(segment: Segment) -> list[int]:
    run = len(segment.run)
    start = segment.start - len(segment.hidden)
    positions = list(range(start, start + run))
    for parent in segment.tree_parents:
        positions.append(positions[run + parent if parent >= 0 else run - 1] + 1)
    return positions


def build_batch(segments: Sequence[Segment], *, block_size: int, device: torch.device) -> RaggedBatch:
    """Lay segments end to end, in order."""
    token_ids: list[int] = []
    positions: list[int] = []
    slots: list[int] = []
    logit_rows: list[int] = []
    logit_parents: list[int] = []
    roots: list[int] = []
    placed: list[PlacedSegment] = []
    for segment in segments:
        row, run = len(token_ids), len(segment.run)
        keys = segment.root_index + 1 + len(segment.tree_tokens)
        own = _positions(segment)
        placed.append(
            PlacedSegment(
                segment=segment,
                row=row,
                positions=torch.tensor(own, device=device),
                blocks=segment.blocks[: -(-keys // block_size)],
            )
        )
        token_ids += [*segment.run, *segment.tree_tokens]
        positions += own
        slots += [segment.slot(segment.start + index, block_size) for index in range(segment.num_rows)]
        if not segment.wants_logits:
            roots.append(-1)
            continue
        root = len(logit_rows)
        roots.append(root)
        logit_rows += range(row + run - 1, row + segment.num_rows)
        logit_parents.append(-1)
        logit_parents += [root + 1 + parent for parent in segment.tree_parents]

    def tensor(values: list[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.int64, device=device)

    return RaggedBatch(
        token_ids=tensor(token_ids),
        positions=tensor(positions),
        segments=placed,
        slots=tensor(slots),
        logit_rows=tensor(logit_rows),
        logit_parents=tensor(logit_parents),
        roots=tensor(roots),
    )
