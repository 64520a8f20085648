"""The engine behind one call: `Engine.step` computes planned rows and says what each session committed.

Planning is the caller's: which rows take part, how many draft nodes, which KV blocks a session holds
(`engine.blocks`). Inside are copies of KV blocks, the forward, draws, the walk through each tree and KV
compaction.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

import torch
from torch import Tensor

from paceline.engine.blocks import BlockTask
from paceline.engine.kv import KVPool
from paceline.engine.logits.matcher import Matcher
from paceline.engine.logits.session import SessionLogits
from paceline.engine.logprobs import logprobs_of
from paceline.engine.rows import RaggedBatch, Segment
from paceline.engine.shape import ModelShape
from paceline.engine.states import StatePool
from paceline.engine.verify import Decision, decide
from paceline.logprobs import TokenLogprobs
from paceline.sampling import SamplingParams

if TYPE_CHECKING:
    from paceline.engine.model import Decoder


@dataclass(frozen=True, slots=True)
class SessionRows:
    """One session's share of a step."""

    segment: Segment
    sampling: SamplingParams
    # Likeliest ids of each row with logits that the session's drafter wants back.
    feedback_top_k: int = 0
    # Constrains the text; None leaves it free.
    matcher: Matcher | None = None
    # See `LogprobsWanted`.
    top_logprobs: int | None = None
    prompt_top_logprobs: int = 0
    # The tokens behind the segment's scored rows.
    scored_tokens: Sequence[int] = ()
    # What `sampling` asks of logits, kept from step to step, with the session's text; None where no parameter
    # looks back.
    logits: SessionLogits | None = None


@dataclass(frozen=True, slots=True)
class StepInput:
    """What one step computes."""

    sessions: Sequence[SessionRows]
    # From `BlockAllocator.take_tasks`; each task is given to the engine once, also where its step fails.
    block_tasks: Sequence[BlockTask] = ()


@dataclass(frozen=True, slots=True)
class StepOutput:
    """What one step decided."""

    # One for each session whose segment wants logits, in order.
    decisions: list[Decision]
    # Of each session's scored tokens, in order.
    scores: list[list[TokenLogprobs]]


# Source and target slots.
Moves: TypeAlias = tuple[list[int], list[int]]


@dataclass(frozen=True, slots=True)
class MirroredStep:
    """A step as the other ranks of a model compute it: they draw nothing."""

    segments: Sequence[Segment]
    block_tasks: Sequence[BlockTask]
    # Of the steps before.
    moves: Sequence[Moves] = field(default=())


class Engine:
    """A model, its KV and kept states. On one thread at a time, but for `read_states`.

    A step that raises may be repeated, whole or session by session: it has written nothing but the KV of its
    own rows, and compaction comes after all draws.
    """

    def __init__(
        self,
        decoder: Decoder,
        blocks: int,
        keep_states: Sequence[int] = (),
        *,
        mirror: Callable[[MirroredStep], None] | None = None,
    ) -> None:
        """`blocks` of KV; `mirror` has the other ranks of the model do a step, before this one does it.

        `keep_states`: numbers of the layers whose states are kept beside the KV (`engine.states`).
        """
        self.decoder = decoder
        self.blocks = blocks
        self.pool = decoder.kv_pool(blocks)
        self.states = decoder.state_pool(keep_states, blocks) if keep_states else None
        self._mirror = mirror
        # Held while blocks are copied and while states are read.
        self._copying = threading.Lock()
        # Given, and not done yet.
        self._tasks: list[BlockTask] = []
        # Done here, and not by the other ranks yet.
        self._moves: list[Moves] = []

    @property
    def block_size(self) -> int:
        """Positions of a KV block."""
        return self.decoder.block_size

    @property
    def kv_tokens(self) -> int:
        """Positions that all blocks together have room for."""
        return self.blocks * self.block_size

    @property
    def shape(self) -> ModelShape:
        """Of the model."""
        return self.decoder.shape

    @property
    def device(self) -> torch.device:
        """Where this rank computes."""
        return self.decoder.device

    @property
    def dtype(self) -> torch.dtype:
        """What the weights are computed in."""
        return self.decoder.dtype

    @property
    def fused(self) -> bool:
        """Whether it runs without transformers' modules."""
        return self.decoder.fused

    @property
    def exact(self) -> bool:
        """Whether a token's bits do not depend on what else is in the batch: see `Decoder.exact`."""
        return self.decoder.exact

    @property
    def kept_layers(self) -> tuple[int, ...]:
        """Numbers of the layers whose states are kept, ascending."""
        return self.states.layers if self.states is not None else ()

    @property
    def state_width(self) -> int:
        """Numbers of one position's state of one layer; 0 where none are kept."""
        return self.states.width if self.states is not None else 0

    @property
    def kv_bytes(self) -> int:
        """Bytes of one position's keys and values."""
        return self.decoder.block_bytes // self.block_size

    @property
    def state_bytes(self) -> int:
        """Bytes of one position's kept states."""
        return self.decoder.state_bytes(len(self.kept_layers))

    def read_states(self, blocks: Sequence[int], start: int, count: int, layers: Sequence[int]) -> Tensor:
        """States [count, layers, width] of a session's positions from `start` on, on the CPU, dense.

        On any thread, also while a step runs: of positions whose keys the session has, while `blocks` are
        sure to stay its own. Raises `ValueError` for a layer that is not kept and beyond the blocks.
        """
        if self.states is None:
            raise ValueError("no states are kept here")
        with self._copying:
            # A block that is to be a copy reads as what it will be a copy of.
            sources = {task.block: task.source for task in self._tasks}
            copied = ((block, sources.get(block)) for block in blocks)
            blocks = [block if source is None else source for block, source in copied]
            return self.states.read(blocks, start, count, layers)

    def do_first(self, block_tasks: Sequence[BlockTask]) -> None:
        """Take the next step's block tasks as soon as they are planned.

        A session whose table has such blocks may have its states read from then on.
        """
        with self._copying:
            self._tasks += block_tasks

    def step(self, step: StepInput) -> StepOutput:
        """Compute the rows, draw every row's token, walk the trees, move the accepted KV to its place.

        Raises `ValueError` for a segment that wants logits and has no row of its root, to draw from.
        """
        segments = [rows.segment for rows in step.sessions]
        if any(segment.wants_logits and not segment.run for segment in segments):
            raise ValueError("a segment without its root's row can be computed by `forward` alone")
        batch, logits = self._forward(segments, step.block_tasks)
        drawing = [rows for rows in step.sessions if rows.segment.wants_logits]
        decisions = decide(
            batch,
            logits,
            [rows.logits or SessionLogits(rows.sampling) for rows in drawing],
            [rows.matcher for rows in drawing],
            [rows.feedback_top_k for rows in drawing],
            [rows.top_logprobs for rows in drawing],
        )
        scores = [
            logprobs_of(logits[placed.scored], rows.scored_tokens, rows.prompt_top_logprobs)
            for placed, rows in zip(batch.segments, step.sessions, strict=True)
        ]
        self.accept((rows.segment, decision.path) for rows, decision in zip(drawing, decisions, strict=True))
        return StepOutput(decisions, scores)

    def forward(self, segments: Sequence[Segment], block_tasks: Sequence[BlockTask] = ()) -> Tensor:
        """A step without draws, for checks and for timing: logits [logit rows, vocab]."""
        return self._forward(segments, block_tasks)[1]

    def accept(self, paths: Iterable[tuple[Segment, Sequence[int]]]) -> None:
        """Move the KV of accepted nodes, a path for each segment, to their positions' slots.

        One indexed copy for all sessions. `step` does so by itself.
        """
        size = self.block_size
        sources: list[int] = []
        targets: list[int] = []
        for segment, path in paths:
            first = segment.root_index + 1
            for depth, node in enumerate(path):
                sources.append(segment.slot(first + node, size))
                targets.append(segment.slot(first + depth, size))
        if sources != targets:
            self._move((sources, targets))
            if self._mirror is not None:
                self._moves.append((sources, targets))

    def follow(self, step: MirroredStep) -> None:
        """Do the leader's step on this rank's share of the model and of the KV."""
        for moves in step.moves:
            self._move(moves)
        self._forward(step.segments, step.block_tasks)

    def _forward(
        self, segments: Sequence[Segment], block_tasks: Sequence[BlockTask]
    ) -> tuple[RaggedBatch, Tensor]:
        self.do_first(block_tasks)
        # May raise for what one session brings: the other ranks need not know of it.
        batch = self.decoder.batch(segments)
        if self._mirror is not None:
            self._mirror(MirroredStep(segments, self._tasks, self._moves))
            self._moves = []
        with self._copying:
            for pool in self._pools:
                pool.prepare(self._tasks)
            self._tasks = []
        return batch, self.decoder.forward(batch, self.pool, self.states)

    def _move(self, moves: Moves) -> None:
        sources, targets = torch.tensor(moves, device=self.device)
        for pool in self._pools:
            pool.move(sources, targets)

    @property
    def _pools(self) -> tuple[KVPool | StatePool, ...]:
        """What has a slot for each position."""
        return (self.pool,) if self.states is None else (self.pool, self.states)
