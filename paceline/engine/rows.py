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
    block table and covers the run's positions.
    """

    run: Sequence[int]
    start: int
    blocks: Sequence[int]
    tree_tokens: Sequence[int] = ()
    tree_parents: Sequence[int] = ()
    wants_logits: bool = True

    @property
    def num_rows(self) -> int:
        """Rows this segment adds to the batch."""
        return len(self.run) + len(self.tree_tokens)

    @property
    def root_position(self) -> int:
        """Absolute position of the run's last row."""
        return self.start + len(self.run) - 1


@dataclass(frozen=True, slots=True)
class PlacedSegment:
    """A segment with its place in the batch and what attention needs of it."""

    segment: Segment
    # First row of the segment in the batch.
    row: int
    # Number of KV blocks that hold the positions up to the root's.
    num_blocks: int
    # Absolute position of each row. [rows]
    positions: Tensor
    # True where tree node `column` is row `row` itself or its ancestor. [rows, nodes]
    ancestors: Tensor

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
    # Where the rows of the runs go in the KV pool. [run rows] each
    run_rows: Tensor
    run_blocks: Tensor
    run_offsets: Tensor
    # Rows of tree nodes, whose keys and values wait in the stash. [tree rows]
    tree_rows: Tensor
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


def _ancestor_table(num_run: int, parents: Sequence[int]) -> Tensor:
    nodes = len(parents)
    table = torch.zeros(num_run + nodes, nodes, dtype=torch.bool)
    for node, parent in enumerate(parents):
        if parent >= 0:
            table[num_run + node] = table[num_run + parent]
        table[num_run + node, node] = True
    return table


def _positions(segment: Segment) -> list[int]:
    positions = list(range(segment.start, segment.start + len(segment.run)))
    run = len(segment.run)
    for parent in segment.tree_parents:
        positions.append((segment.root_position if parent < 0 else positions[run + parent]) + 1)
    return positions


def build_batch(segments: Sequence[Segment], *, block_size: int, device: torch.device) -> RaggedBatch:
    """Lay segments end to end, in order."""
    token_ids: list[int] = []
    positions: list[int] = []
    placed: list[PlacedSegment] = []
    for segment in segments:
        own = _positions(segment)
        placed.append(
            PlacedSegment(
                segment=segment,
                row=len(token_ids),
                num_blocks=segment.root_position // block_size + 1,
                positions=torch.tensor(own, device=device),
                ancestors=_ancestor_table(len(segment.run), segment.tree_parents).to(device),
            )
        )
        token_ids += [*segment.run, *segment.tree_tokens]
        positions += own
    return _assemble(token_ids, positions, placed, block_size, device)


def _assemble(
    token_ids: list[int],
    positions: list[int],
    segments: list[PlacedSegment],
    block_size: int,
    device: torch.device,
) -> RaggedBatch:
    run_rows: list[int] = []
    run_blocks: list[int] = []
    run_offsets: list[int] = []
    tree_rows: list[int] = []
    logit_rows: list[int] = []
    logit_parents: list[int] = []
    roots: list[int] = []
    for place in segments:
        segment = place.segment
        run = len(segment.run)
        run_rows += range(place.row, place.row + run)
        for position in range(segment.start, segment.start + run):
            run_blocks.append(segment.blocks[position // block_size])
            run_offsets.append(position % block_size)
        tree_rows += range(place.row + run, place.row + segment.num_rows)
        if not segment.wants_logits:
            roots.append(-1)
            continue
        root = len(logit_rows)
        roots.append(root)
        logit_rows += range(place.row + run - 1, place.row + segment.num_rows)
        logit_parents.append(-1)
        logit_parents += [root + 1 + parent for parent in segment.tree_parents]

    def tensor(values: list[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.int64, device=device)

    return RaggedBatch(
        token_ids=tensor(token_ids),
        positions=tensor(positions),
        segments=segments,
        run_rows=tensor(run_rows),
        run_blocks=tensor(run_blocks),
        run_offsets=tensor(run_offsets),
        tree_rows=tensor(tree_rows),
        logit_rows=tensor(logit_rows),
        logit_parents=tensor(logit_parents),
        roots=tensor(roots),
    )
