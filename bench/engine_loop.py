"""The verifier's loop in its plainest form, without a service: rows in, forward, accept, compact KV."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from paceline.engine.blocks import BlockAllocator
from paceline.engine.engine import Engine, SessionRows, StepInput
from paceline.engine.logits.history import History
from paceline.engine.logits.session import SessionLogits
from paceline.engine.model import Decoder
from paceline.engine.rows import Segment
from paceline.engine.verify import Decision
from paceline.sampling import SamplingParams
from paceline.tree import TokenTree


@contextmanager
def loaded(
    folder: Path,
    dtype: torch.dtype = torch.float32,
    *,
    threads: int = 1,
    backend: str | None = None,
    device: str = "cpu",
) -> Iterator[Decoder]:
    """A decoder on so many threads. One is by far the fastest for tiny models on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield Decoder.load(folder, device=torch.device(device), dtype=dtype, backend=backend)
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

    def __post_init__(self) -> None:
        self.logits = SessionLogits(self.sampling, History(self.token_ids, self.prompt_length))


@dataclass
class EngineLoop:
    """An engine, its block tables and nothing else."""

    engine: Engine
    allocator: BlockAllocator

    @classmethod
    def of(cls, decoder: Decoder, blocks: int, keep_states: Sequence[int] = ()) -> EngineLoop:
        """A loop over fresh KV."""
        engine = Engine(decoder, blocks, keep_states)
        return cls(engine, BlockAllocator(blocks, engine.block_size))

    def segment(self, session: Running, tree: TokenTree, stop: int | None = None) -> Segment:
        """The rows from the first that is not computed up to `stop` (the whole prompt or text)."""
        in_prompt = session.num_computed < session.prompt_length
        if stop is None:
            stop = session.prompt_length if in_prompt else len(session.token_ids)
        self.allocator.extend(session.blocks, -(-(stop + len(tree)) // self.engine.block_size))
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
        rows = [
            SessionRows(segment, session.sampling, logits=session.logits)
            for segment, session in zip(segments, sessions, strict=True)
        ]
        decided = self.engine.step(StepInput(rows, self.allocator.take_tasks())).decisions
        drawing = [index for index, segment in enumerate(segments) if segment.wants_logits]
        decisions = dict(zip(drawing, decided, strict=True))
        for index, (session, segment, tree) in enumerate(zip(sessions, segments, trees, strict=True)):
            session.num_computed += len(segment.run)
            if index in decisions:
                session.num_computed += len(decisions[index].path)
                session.token_ids += committed(tree, decisions[index])

    def forward(self, segments: Sequence[Segment]) -> Tensor:
        """Logits [logit rows, vocab] of rows that `segment` made; nothing is drawn."""
        return self.engine.forward(segments, self.allocator.take_tasks())


def committed(tree: TokenTree, decision: Decision) -> list[int]:
    """The tokens a decision commits. Raises why there are none."""
    if decision.fault is not None:
        raise decision.fault
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
