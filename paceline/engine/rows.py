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

    The run may be empty: the root's keys and those of the first `computed_nodes` nodes are there from earlier
    forwards, `start` is behind the root, and the other nodes alone are rows. So a tree can grow level by
    level.

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
    computed_nodes: int = 0
    # Rows of the run, as indices into it, whose logits are wanted beside those to draw from: they say how
    # likely the run's own tokens are. Never the root's.
    scored: range = range(0)

    def __post_init__(self) -> None:
        """Raises `ValueError` where nodes behind rows have been computed, or nothing is left to compute.

        Also where scored rows are none of the run's.
        """
        if self.computed_nodes and (self.run or self.computed_nodes >= len(self.tree_tokens)):
            raise ValueError(
                f"{self.computed_nodes} of {len(self.tree_tokens)} nodes behind {len(self.run)} rows cannot "
                "have been computed before"
            )
        if self.scored and not 0 <= self.scored[0] <= self.scored[-1] < len(self.run) - self.wants_logits:
            raise ValueError(f"{self.scored} are not rows of a run of {len(self.run)} before its root")

    @property
    def num_rows(self) -> int:
        """Rows this segment adds to the batch."""
        return len(self.run) + len(self.tree_tokens) - self.computed_nodes

    @property
    def root_index(self) -> int:
        """Which of the session's keys is the root's: its position, where none is hidden."""
        return self.start + len(self.run) - 1

    def slot(self, index: int, block_size: int) -> int:
        """Pool slot of the `index`-th key this segment's rows may see.

        Up to the root that is the key of that position, where none is hidden; node i of the tree waits at
        root + 1 + i, where it already belongs if the first child of every node is accepted.
        """
        return self.blocks[index // block_size] * block_size + index % block_size

    def paths(self) -> list[list[int]]:
        """Of every node, which of the session's keys are its ancestors' and its own, from the root on."""
        made: list[list[int]] = []
        for node, parent in enumerate(self.tree_parents):
            made.append([*(made[parent] if parent >= 0 else []), self.root_index + 1 + node])
        return made


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
    # Index into the batch's `logit_rows` of the segment's first one.
    logit_row: int

    @property
    def scored(self) -> slice:
        """The logits of the rows that are scored."""
        return slice(self.logit_row, self.logit_row + len(self.segment.scored))

    @property
    def drawn(self) -> slice:
        """The logits of the root and, behind it, of the tree's nodes; empty where none are wanted."""
        segment, first = self.segment, self.scored.stop
        if not segment.wants_logits:
            return slice(first, first)
        return slice(
            first, first + min(len(segment.run), 1) + len(segment.tree_tokens) - segment.computed_nodes
        )

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
    # Row of the parent of each logit row, -1 for a run's rows and where the parent is no row of this batch,
    # as indices into logit_rows.
    logit_parents: Tensor
    # Index into logit_rows of each segment's root; -1 where the segment wants no logits or has no run.
    roots: Tensor

    @property
    def num_rows(self) -> int:
        """Rows of the forward."""
        return int(self.token_ids.numel())


def _positions(segment: Segment) -> list[int]:
    """Of every row."""
    root = segment.root_index - len(segment.hidden)
    nodes: list[int] = []
    for parent in segment.tree_parents:
        nodes.append((nodes[parent] if parent >= 0 else root) + 1)
    return [*range(root + 1 - len(segment.run), root + 1), *nodes[segment.computed_nodes :]]


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
                logit_row=len(logit_rows),
            )
        )
        computed = segment.computed_nodes
        token_ids += [*segment.run, *segment.tree_tokens[computed:]]
        positions += own
        first = segment.start + computed
        slots += [segment.slot(first + index, block_size) for index in range(segment.num_rows)]
        logit_rows += [row + index for index in segment.scored]
        logit_parents += [-1] * len(segment.scored)
        if not segment.wants_logits:
            roots.append(-1)
            continue
        roots.append(len(logit_rows) if run else -1)
        # Index into logit_rows of the first node, were none computed.
        nodes = len(logit_rows) + min(run, 1) - computed
        logit_rows += range(row + max(run - 1, 0), row + segment.num_rows)
        if run:
            logit_parents.append(-1)
        for parent in segment.tree_parents[computed:]:
            is_row = parent >= computed if parent >= 0 else run > 0
            logit_parents.append(nodes + parent if is_row else -1)

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
