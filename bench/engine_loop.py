"""The verifier's loop in its plainest form, without a service: rows in, forward, accept, compact KV."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch

from paceline.engine.blocks import BlockAllocator
from paceline.engine.kv import KVPool
from paceline.engine.model import BLOCK_SIZE, Decoder
from paceline.engine.rows import Segment
from paceline.engine.verify import Decision, decide
from paceline.sampling import SamplingParams
from paceline.tree import TokenTree


@contextmanager
def loaded(
    folder: Path, dtype: torch.dtype = torch.float32, *, threads: int = 1, backend: str | None = None
) -> Iterator[Decoder]:
    """A decoder on so many threads. One is by far the fastest for tiny models on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield Decoder.load(folder, device=torch.device("cpu"), dtype=dtype, backend=backend)
    finally:
        torch.set_num_threads(before)


@dataclass(eq=False)
class Running:
    """One session: its tokens and where their KV lies."""

    token_ids: list[int]
    prompt_length: int
    sampling: SamplingParams
    blocks: list[int] = field(default_factory=list)
    num_computed: int = 0


@dataclass
class EngineLoop:
    """A decoder, its pool and nothing else."""

    decoder: Decoder
    pool: KVPool
    allocator: BlockAllocator

    @classmethod
    def of(cls, decoder: Decoder, blocks: int) -> EngineLoop:
        """A loop over a fresh pool."""
        return cls(decoder, decoder.kv_pool(blocks), BlockAllocator(blocks, BLOCK_SIZE))

    def segment(self, session: Running, tree: TokenTree, stop: int | None = None) -> Segment:
        """The rows from the first that is not computed up to `stop` (the whole prompt or text)."""
        in_prompt = session.num_computed < session.prompt_length
        if stop is None:
            stop = session.prompt_length if in_prompt else len(session.token_ids)
        self.allocator.extend(session.blocks, -(-(stop + len(tree)) // BLOCK_SIZE))
        self.pool.prepare(self.allocator.take_tasks())
        return Segment(
            run=session.token_ids[session.num_computed : stop],
            start=session.num_computed,
            blocks=tuple(session.blocks),
            tree_tokens=tree.tokens,
            tree_parents=tree.parents,
            wants_logits=stop == len(session.token_ids),
        )

    def step(self, sessions: Sequence[Running], draft: Callable[[Running], TokenTree]) -> None:
        """One step of all sessions; those past their prompt draft."""
        trees = [
            draft(session) if session.num_computed >= session.prompt_length else TokenTree()
            for session in sessions
        ]
        segments = [self.segment(*pair) for pair in zip(sessions, trees, strict=True)]
        batch = self.decoder.batch(segments)
        logits = self.decoder.forward(batch, self.pool)
        drawing = [index for index, segment in enumerate(segments) if segment.wants_logits]
        decided = decide(batch, logits, [sessions[index].sampling for index in drawing], [0] * len(drawing))
        decisions = dict(zip(drawing, decided, strict=True))
        self.compact([(segments[index], decided.path) for index, decided in decisions.items()])
        for index, (session, segment, tree) in enumerate(zip(sessions, segments, trees, strict=True)):
            session.num_computed += len(segment.run)
            if index in decisions:
                session.num_computed += len(decisions[index].path)
                session.token_ids += committed(tree, decisions[index])

    def compact(self, paths: Iterable[tuple[Segment, Sequence[int]]]) -> None:
        """Move the accepted nodes' KV of all sessions to their positions' slots."""
        slots = [
            (segment.slot(first + node, BLOCK_SIZE), segment.slot(first + depth, BLOCK_SIZE))
            for segment, path in paths
            for first in [segment.root_index + 1]
            for depth, node in enumerate(path)
        ]
        sources, targets = torch.tensor(slots, dtype=torch.int64).reshape(-1, 2).unbind(1)
        self.pool.move(sources, targets)


def committed(tree: TokenTree, decision: Decision) -> list[int]:
    """The tokens a decision commits."""
    return [*(tree.tokens[node] for node in decision.path), decision.bonus]


def generate(
    loop: EngineLoop,
    sessions: Sequence[Running],
    count: int,
    draft: Callable[[Running], TokenTree] = lambda session: TokenTree(),
) -> list[list[int]]:
    """The next `count` tokens of every session, all stepped together until the slowest has them."""
    lengths = [len(session.token_ids) for session in sessions]
    while True:
        waiting = [
            session
            for session, length in zip(sessions, lengths, strict=True)
            if len(session.token_ids) < length + count
        ]
        if not waiting:
            break
        loop.step(waiting, draft)
    return [
        session.token_ids[length : length + count] for session, length in zip(sessions, lengths, strict=True)
    ]
