"""The step loop: plan, compute, advance each session, hand out verdicts and tokens."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import Protocol

from paceline.constraints.matcher import MatcherError
from paceline.engine.blocks import BlockAllocator, OutOfBlocksError
from paceline.engine.engine import Engine
from paceline.engine.logits.process import NothingLeftError
from paceline.service import telemetry
from paceline.session import FinishReason
from verifier_svc import metrics, warmup
from verifier_svc.compute import StepCompute
from verifier_svc.control import DraftControl
from verifier_svc.divergence import DivergenceCheck
from verifier_svc.events import Faulty
from verifier_svc.isolation import SessionFault, compute_apart, harmless, plan_apart
from verifier_svc.load import Load, full_rows
from verifier_svc.progress import Progress, SessionStep, Totals
from verifier_svc.scheduler import Plan, PlannedRows, StepLimits, plan, plan_tree
from verifier_svc.session_trace import StepTimes, TracedRows
from verifier_svc.sessions import Session, SessionTable

log = telemetry.logger(__name__)


def engine_thread() -> Executor:
    """The one thread that may run tensor operations: loads the model, warms it up, runs the loop.

    Every thread that runs a parallel operation gets an OpenMP team of its own, and where the teams
    together have more threads than the machine has cores, libgomp stops spinning at barriers: a step
    then takes twice as long.
    """
    return ThreadPoolExecutor(max_workers=1, thread_name_prefix="engine")


class StepListener(Protocol):
    """Hears of steps, on the engine's thread. The calls for one session come in order."""

    def stepped(self, steps: list[SessionStep], times: StepTimes) -> None:
        """A step is over; what each of its sessions got."""

    def session_failed(self, session: Session, fault: Faulty) -> None:
        """A session was ended because it cannot be computed; `fault` says why."""

    def tree_failed(self, stream_id: int) -> None:
        """A tree of that drafter stream cannot be computed; its session goes on."""

    def engine_failed(self) -> None:
        """The engine has stopped for good."""


class StepLoop:
    """Runs the engine on `thread`; other threads change sessions under the lock of `table`."""

    def __init__(
        self,
        engine: Engine,
        table: SessionTable,
        control: DraftControl,
        listener: StepListener,
        thread: Executor,
        *,
        prefix_cache: bool,
        limits: StepLimits,
        divergence_interval: int,
        feedback_top_k: Callable[[int], int],
    ) -> None:
        self.table = table
        self.allocator = BlockAllocator(engine.blocks, engine.block_size, keep_texts=prefix_cache)
        # Rounds of the loop so far, with work or without, and the time of the last one.
        self.beats = 0
        self.beat_at = time.monotonic()
        self.failure: BaseException | None = None
        self._engine = engine
        self._compute = StepCompute(engine)
        self._divergence = DivergenceCheck(engine, interval=divergence_interval)
        self._control = control
        self._progress = Progress(table, self.allocator, control, self._divergence)
        self._limits = limits
        self._feedback_top_k = feedback_top_k
        self._listener = listener
        self._stopping = False
        self._steps = 0
        self._thread = thread
        self._ended: Future[None] | None = None

    @property
    def totals(self) -> Totals:
        """Counts since the start."""
        return self._progress.totals

    @property
    def load(self) -> Load:
        """How much there was to do since the start."""
        return self._progress.load

    @property
    def full_rows(self) -> int:
        """See `load.full_rows`; call with the table's lock held."""
        return full_rows(self._control.budget.cost)

    def start(self) -> None:
        """Warm up and serve; returns once the kernels are warm."""
        self._thread.submit(self._warm_up).result()
        self._ended = self._thread.submit(self._run)

    def _warm_up(self) -> None:
        self._control.budget.cost = warmup.measure(self._engine, draft_rows=self._control.draft_rows)

    def stop(self) -> None:
        """Stop after the step in hand. Idempotent."""
        with self.table.lock:
            self._stopping = True
            self.table.lock.notify_all()
        if self._ended is not None:
            self._ended.result()

    def cancel(self, session: Session, reason: FinishReason = FinishReason.CANCELLED) -> None:
        """Take a session out before the next step and free its KV. Idempotent."""
        with self.table.lock:
            self._progress.retire(session, reason)

    def _run(self) -> None:
        try:
            while (following := self._next_plan()) is not None:
                self._step(*following)
        except BaseException as error:
            log.exception("the engine stopped")
            self.failure = error
            self._listener.engine_failed()

    def _next_plan(self) -> tuple[Plan, StepTimes] | None:
        """Wait until there is work, and for trees while that pays; None when the loop is to stop."""
        with self.table.lock:
            while True:
                if self._stopping:
                    return None
                self.beats += 1
                self.beat_at = time.monotonic()
                times = StepTimes(self._steps + 1, began=time.time_ns())
                with harmless("waiting for trees"):
                    waited = self._control.await_trees(lambda: self._stopping)
                    self.load.exposed_seconds += waited.seconds
                    self.load.exposed_reply_seconds += waited.session_seconds
                times.waited = time.time_ns()
                sessions = self.table.running()
                apart = plan_apart(sessions, self._plan, self._plan_tree)
                planned = apart.plan
                # Before the lock is given up: the states of blocks that are to be copies can be read.
                self._engine.do_first(planned.block_tasks)
                self._end_faulty(apart.faults)
                self._blame(apart.harmful)
                metrics.LATE_TREES.inc(planned.late_trees)
                metrics.PREEMPTIONS.inc(len(planned.preempted))
                metrics.PREFIX_QUERIES.inc(planned.queried_tokens)
                metrics.PREFIX_HITS.inc(planned.found_tokens)
                if planned.rows:
                    self._control.ask(sessions)
                    self._steps += 1
                    times.draft_budget = self._control.nodes_asked
                    times.traced = _traced(planned, times.began)
                    return planned, times
                self.table.lock.wait(timeout=1.0)

    def _plan(self, sessions: Sequence[Session]) -> Plan:
        return plan(sessions, self.allocator, self._limits, self._control.budget)

    def _plan_tree(self, session: Session) -> None:
        plan_tree(session, self._limits, self._control.budget)

    def _step(self, planned: Plan, times: StepTimes) -> None:
        started = time.monotonic()
        times.forward = time.time_ns()
        computed = compute_apart(
            planned.rows,
            lambda rows: self._compute(rows, self._top_k),
            self._engine_is_sound,
            repeatable=self._engine.shape.ranks == 1,
        )
        seconds = time.monotonic() - started
        times.computed = time.time_ns()
        with self.table.lock:
            self._end_faulty(computed.faults)
            self._blame(computed.harmful)
            if not computed.as_planned:
                # What is left of a tree that made the step fail would make the next one fail.
                for row in planned.rows:
                    row.session.drafting.drop_trees()
            steps, faults = self._progress.apply(computed, (times.waited - times.began) / 1e9)
            self._end_faulty(faults)
            if computed.as_planned:
                with harmless("learning"):
                    block_size = self._engine.block_size
                    self._control.learn(planned, computed.drawn, seconds, block_size=block_size)
        self._measure(planned, time.monotonic() - started, times)
        times.ended = time.time_ns()
        self._listener.stepped(steps, times)
        with harmless("a check for divergence"):
            self._divergence.run()

    def _measure(self, planned: Plan, seconds: float, times: StepTimes) -> None:
        num_rows = sum(row.segment.num_rows for row in planned.rows)
        times.sessions, times.rows = len(planned.rows), num_rows
        metrics.STEP_SECONDS.labels(rows=metrics.rows_label(num_rows)).observe(seconds, times.exemplar)
        metrics.STEP_ROWS.observe(num_rows)
        self.load.stepped(seconds, num_rows)
        metrics.DRAFT_BUDGET.set(self._control.nodes_asked)

    def _engine_is_sound(self) -> bool:
        """Whether the engine computes a row of its own. Without a free block that is assumed."""
        block: list[int] = []
        with self.table.lock:
            try:
                self.allocator.extend(block, 1)
            except OutOfBlocksError:
                return True
            self._engine.do_first(self.allocator.take_tasks())
        sound = self._compute.sound(block[0])
        with self.table.lock:
            self.allocator.release(block)
        return sound

    def _end_faulty(self, faults: Sequence[SessionFault]) -> None:
        """End the sessions that cannot be computed; call with the table's lock held."""
        for session, error in ((fault.session, fault.error) for fault in faults):
            if isinstance(error, NothingLeftError | MatcherError):
                fault = Faulty(str(error), asked=True)
            else:
                name = session.key.session_id
                log.error("a session cannot be computed, it is ended", session=name, exc_info=error)
                fault = Faulty(f"this session cannot be computed: {type(error).__name__}")
            self._progress.retire(session, FinishReason.CANCELLED)
            self._listener.session_failed(session, fault)

    def _blame(self, streams: Sequence[int]) -> None:
        for stream_id in streams:
            metrics.HARMFUL_TREES.inc()
            self._listener.tree_failed(stream_id)

    def _top_k(self, row: PlannedRows) -> int:
        """Ids per row that go to the session's drafter; 0 where it is not drafting."""
        session = row.session
        stream_id = session.drafting.stream_id
        if not stream_id or not (row.tree.tokens or self._control.nodes_for(session)):
            return 0
        return self._feedback_top_k(stream_id)


def _traced(planned: Plan, began: int) -> list[TracedRows]:
    """The rows of sessions whose trace is recorded; `began`: when the step did."""
    for row in planned.rows:
        if row.session.trace is not None and not row.session.trace.taken_at:
            row.session.trace.taken_at = began
    return [
        TracedRows(trace, row.session.key, row.session.length, row.segment.num_rows, len(row.tree))
        for row in planned.rows
        if (trace := row.session.trace) is not None
    ]
