"""The engine's loop in its plainest form: rows in, forward, accept, compact KV. What the verifier's does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

from paceline.engine.kv import BlockAllocator, KVPool
from paceline.engine.model import BLOCK_SIZE, Decoder
from paceline.engine.rows import Segment
from paceline.engine.verify import Decision, decide
from paceline.session import SamplingParams
from paceline.tree import TokenTree


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
        return cls(decoder, decoder.kv_pool(blocks), BlockAllocator(blocks))

    def segment(self, session: Running, tree: TokenTree, stop: int | None = None) -> Segment:
        """The rows from what is computed up to `stop`, which is all of the prompt or of the text."""
        in_prompt = session.num_computed < session.prompt_length
        if stop is None:
            stop = session.prompt_length if in_prompt else len(session.token_ids)
        deepest = stop + max(tree.depths(), default=0)
        self.allocator.extend(session.blocks, -(-deepest // BLOCK_SIZE))
        return Segment(
            run=session.token_ids[session.num_computed : stop],
            start=session.num_computed,
            blocks=tuple(session.blocks),
            tree_tokens=tree.tokens,
            tree_parents=tree.parents,
            prompt_rows=in_prompt,
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
        paths = [decisions[index].path if index in decisions else () for index in range(len(sessions))]
        self.commit(sessions, segments, paths)
        for index, session in enumerate(sessions):
            session.num_computed += len(segments[index].run) + len(paths[index])
            if index in decisions:
                session.token_ids += committed(trees[index], decisions[index])

    def commit(
        self, sessions: Sequence[Running], segments: Sequence[Segment], paths: Sequence[Sequence[int]]
    ) -> None:
        """Move the accepted nodes' KV of all sessions to their places."""
        slots: list[tuple[int, int, int]] = []
        first = 0
        for session, segment, path in zip(sessions, segments, paths, strict=True):
            for position, node in enumerate(path, start=segment.root_position + 1):
                slots.append((first + node, session.blocks[position // BLOCK_SIZE], position % BLOCK_SIZE))
            first += len(segment.tree_tokens)
        nodes, blocks, offsets = torch.tensor(slots, dtype=torch.int64).reshape(-1, 3).unbind(1)
        self.pool.commit_stash(nodes, blocks, offsets)


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
