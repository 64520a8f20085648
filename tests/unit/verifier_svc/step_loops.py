"""A step loop on the real engine, and what it says."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from paceline.engine.engine import Engine
from paceline.engine.model import Decoder
from paceline.tree import TokenTree
from verifier_svc.control import DraftControl
from verifier_svc.events import Faulty
from verifier_svc.progress import SessionStep
from verifier_svc.scheduler import StepLimits
from verifier_svc.session_trace import StepTimes
from verifier_svc.sessions import Session, SessionTable
from verifier_svc.step import StepLoop, engine_thread


@dataclass
class LoopUnderTest:
    """A running step loop; its steps go to `on_step`, and all else that it says is noted."""

    on_step: Callable[[LoopUnderTest, SessionStep], None]
    control: DraftControl
    engine: Engine
    loop: StepLoop = field(init=False)
    # By the session's id, why it was ended.
    faults: dict[str, str] = field(default_factory=dict)
    # Drafter streams whose trees were to blame.
    harmful: list[int] = field(default_factory=list)
    times: list[StepTimes] = field(default_factory=list)

    def stepped(self, steps: list[SessionStep], times: StepTimes) -> None:
        self.times.append(times)
        for step in steps:
            self.on_step(self, step)

    def session_failed(self, session: Session, fault: Faulty) -> None:
        self.faults[session.key.session_id] = fault.message

    def tree_failed(self, stream_id: int) -> None:
        self.harmful.append(stream_id)

    def engine_failed(self) -> None:
        assert self.loop.failure is not None

    def add(self, session: Session) -> None:
        with self.loop.table.lock:
            self.loop.table.add(session)
            self.loop.table.lock.notify_all()

    def came(self, session: Session, tree: TokenTree) -> None:
        """A tree on all of the session's ids comes in, past the checks at the door."""
        with self.loop.table.lock:
            self.control.came(session, session.length, tree)


@contextmanager
def running_loop(
    decoder: Decoder,
    on_step: Callable[[LoopUnderTest, SessionStep], None],
    *,
    prefix_cache: bool,
    feedback_top_k: int = 0,
    blocks: int = 16,
    keep_states: Sequence[int] = (),
) -> Iterator[LoopUnderTest]:
    """`on_step` is called on the engine's thread with each session's share of each step."""
    table = SessionTable(9)
    control = DraftControl(table, draft_rows=8, max_tree_nodes=16, max_wait_seconds=0.0)
    tested = LoopUnderTest(on_step, control, Engine(decoder, blocks, keep_states))
    with engine_thread() as thread:
        tested.loop = StepLoop(
            tested.engine,
            table,
            control,
            tested,
            thread,
            prefix_cache=prefix_cache,
            limits=StepLimits(block_size=decoder.block_size, prefill_rows=32, max_tree_nodes=16),
            divergence_interval=0,
            feedback_top_k=lambda _: feedback_top_k,
        )
        tested.loop.start()
        try:
            yield tested
        finally:
            tested.loop.stop()
