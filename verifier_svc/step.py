"""The loop: plan -> compute -> advance every session -> hand out verdicts and tokens."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass

from paceline.engine.blocks import BlockAllocator, OutOfBlocksError
from paceline.engine.model import BLOCK_SIZE, Decoder
from paceline.engine.verify import Decision
from paceline.service import telemetry
from paceline.session import FinishReason, SessionKey
from paceline.tree import TokenTree
from paceline.verdict import Feedback, Verdict
from verifier_svc import metrics, warmup
from verifier_svc.budget import DraftBudget
from verifier_svc.commit import StepOutcome
from verifier_svc.compute import StepCompute
from verifier_svc.cost import StepCost
from verifier_svc.divergence import DivergenceCheck
from verifier_svc.isolation import Computed, Drawn, Fault, compute_apart, harmless, plan_apart
from verifier_svc.learning import learn
from verifier_svc.scheduler import Plan, PlannedRows, StepLimits, plan, plan_tree
from verifier_svc.sessions import Session, SessionTable
from verifier_svc.waiting import TreeWait

log = telemetry.logger(__name__)


@dataclass(frozen=True, slots=True)
class SessionStep:
    """One session's share of a finished step."""

    key: SessionKey
    outcome: StepOutcome
    verdict: Verdict
    # Drafter stream the verdict goes to, 0 for none.
    stream_id: int


@dataclass(frozen=True, slots=True)
class Totals:
    """Counts since the start, for Status."""

    session_steps: int = 0
    drafted_tokens: int = 0
    accepted_tokens: int = 0
    committed_tokens: int = 0


def engine_thread() -> Executor:
    """The one thread that may run tensor operations: loads the model, warms it up, runs the loop.

    Every thread that runs a parallel operation gets an OpenMP team of its own, and where the teams
    together have more threads than the machine has cores, libgomp stops spinning at barriers: a step
    then takes twice as long.
    """
    return ThreadPoolExecutor(max_workers=1, thread_name_prefix="engine")


class StepLoop:
    """Runs the engine on `thread`; other threads change sessions under the lock of `table`.

    `deliver` is called on the engine's thread after every step with what each session got, `on_fault` with
    each session that was ended because it cannot be computed and why, `on_harm` with the drafter stream of
    each tree that cannot be, `on_failure` when the engine has stopped for good.
    """

    def __init__(
        self,
        decoder: Decoder,
        table: SessionTable,
        thread: Executor,
        *,
        blocks: int,
        prefix_cache: bool,
        limits: StepLimits,
        draft_rows: int,
        max_draft_wait: float,
        divergence_interval: int,
        feedback_top_k: Callable[[int], int],
        deliver: Callable[[list[SessionStep]], None],
        on_fault: Callable[[Session, str], None],
        on_harm: Callable[[int], None],
        on_failure: Callable[[], None],
    ) -> None:
        self.table = table
        self.allocator = BlockAllocator(blocks, BLOCK_SIZE, keep_texts=prefix_cache)
        self.totals = Totals()
        # Grows while the loop goes round, with work or without.
        self.beats = 0
        self.beat_at = time.monotonic()
        self.failure: BaseException | None = None
        self._decoder = decoder
        self._pool = decoder.kv_pool(blocks)
        self._compute = StepCompute(decoder, self._pool)
        self._divergence = DivergenceCheck(decoder, self._pool, interval=divergence_interval)
        self._limits = limits
        self._draft_rows = draft_rows
        self._budget = DraftBudget(StepCost({}, 0.0), draft_rows=draft_rows, max_nodes=limits.max_tree_nodes)
        # Nodes that each drafting session is asked for in this step.
        self._asked = limits.max_tree_nodes
        self._max_draft_wait = max_draft_wait
        self._feedback_top_k = feedback_top_k
        self._deliver = deliver
        self._on_fault = on_fault
        self._on_harm = on_harm
        self._on_failure = on_failure
        self._stopping = False
        self._wait = TreeWait()
        self._thread = thread
        self._ended: Future[None] | None = None

    def start(self) -> None:
        """Warm up and serve; returns once the kernels are warm."""
        self._thread.submit(self._warm_up).result()
        self._ended = self._thread.submit(self._run)

    def _warm_up(self) -> None:
        self._budget.cost = warmup.measure(
            self._decoder,
            self._pool,
            blocks=self.allocator.total,
            draft_rows=self._draft_rows,
            max_context=self._decoder.shape.max_context,
        )

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
            if session.finish_reason is None:
                session.finish_reason = reason
            self._retire(session)

    def offer_tree(self, session: Session, base: int, tree: TokenTree) -> None:
        """Hand in a checked tree; call with the table's lock held."""
        self._wait.came(session, tree, base)
        self.table.lock.notify_all()

    def draft_budget(self, session: Session) -> int:
        """Nodes a session's next tree may have; none before its last token, which is the target's."""
        if session.max_draft_depth < 1:
            return 0
        return self._asked or self._budget.probe(session.steps, sessions=len(self.table))

    def _run(self) -> None:
        try:
            while (planned := self._next_plan()) is not None:
                self._step(planned)
        except BaseException as error:
            log.exception("the engine stopped")
            self.failure = error
            self._on_failure()

    def _next_plan(self) -> Plan | None:
        """Block until there is work, wait for trees while that pays; None at the end."""
        with self.table.lock:
            while True:
                if self._stopping:
                    return None
                self.beats += 1
                self.beat_at = time.monotonic()
                with harmless("waiting for trees"):
                    self._await_trees()
                sessions = [session for session in self.table.in_order() if session.finish_reason is None]
                apart = plan_apart(sessions, self._plan, self._plan_tree)
                planned = apart.plan
                self._end_faulty(apart.faults)
                self._blame(apart.harmful)
                metrics.LATE_TREES.inc(planned.late_trees)
                metrics.PREEMPTIONS.inc(len(planned.preempted))
                metrics.PREFIX_QUERIES.inc(planned.queried_tokens)
                metrics.PREFIX_HITS.inc(planned.found_tokens)
                if planned.rows:
                    blocks = sum(len(session.blocks) for session in sessions)
                    self._asked = self._budget.ask(len(sessions), blocks=blocks)
                    return planned
                self.table.lock.wait(timeout=1.0)

    def _plan(self, sessions: Sequence[Session]) -> Plan:
        return plan(sessions, self.allocator, self._limits, self._budget)

    def _plan_tree(self, session: Session) -> None:
        plan_tree(session, self._limits, self._budget)

    def _await_trees(self) -> None:
        if not self._max_draft_wait:
            return
        give_up = time.monotonic() + self._max_draft_wait
        while not self._stopping:
            running = [session for session in self.table.in_order() if session.finish_reason is None]
            seconds = self._wait.seconds(running, limit=give_up - time.monotonic())
            if seconds <= 0:
                return
            self.table.lock.wait(timeout=seconds)

    def _step(self, planned: Plan) -> None:
        started = time.monotonic()
        self._pool.prepare(planned.block_tasks)
        computed = compute_apart(
            planned.rows,
            lambda rows: self._compute(rows, self._top_k),
            self._engine_is_sound,
            repeatable=self._decoder.shape.ranks == 1,
        )
        seconds = time.monotonic() - started
        with self.table.lock:
            self._end_faulty(computed.faults)
            self._blame(computed.harmful)
            steps = self._apply(computed)
            if computed.as_planned:
                with harmless("learning"):
                    self._learn(planned, computed.drawn, seconds)
        context = sum(row.segment.root_index + 1 for row in planned.rows)
        num_rows = sum(row.segment.num_rows for row in planned.rows)
        labels = metrics.step_labels(rows=num_rows, context=context)
        metrics.STEP_SECONDS.labels(*labels).observe(time.monotonic() - started)
        metrics.STEP_ROWS.observe(num_rows)
        metrics.DRAFT_BUDGET.set(self._asked)
        metrics.RUNNING_SESSIONS.set(len(self.table))
        metrics.KV_USED_TOKENS.set((self.allocator.total - self.allocator.free) * BLOCK_SIZE)
        self._deliver(steps)
        with harmless("a check for divergence"):
            self._divergence.run()

    def _learn(self, planned: Plan, drawn: Drawn, seconds: float) -> None:
        accepted = [(row, len(decision.path)) for row, decision in drawn]
        learn(planned, accepted, seconds, block_size=BLOCK_SIZE, budget=self._budget, wait=self._wait)

    def _engine_is_sound(self) -> bool:
        """Whether it computes at all. Without a free block nobody can tell: then it is taken to be."""
        block: list[int] = []
        with self.table.lock:
            try:
                self.allocator.extend(block, 1)
            except OutOfBlocksError:
                return True
        self._pool.prepare(self.allocator.take_tasks())
        sound = self._compute.sound(block[0])
        with self.table.lock:
            self.allocator.release(block)
        return sound

    def _end_faulty(self, faults: Sequence[Fault]) -> None:
        """End sessions that cannot be computed, and nobody else; call with the table's lock held."""
        for session, error in ((fault.session, fault.error) for fault in faults):
            log.error(
                "a session cannot be computed, it is ended", session=session.key.session_id, exc_info=error
            )
            session.finish_reason = FinishReason.CANCELLED
            self._retire(session)
            self._on_fault(session, f"this session cannot be computed: {type(error).__name__}")

    def _blame(self, streams: Sequence[int]) -> None:
        for stream_id in streams:
            metrics.HARMFUL_TREES.inc()
            self._on_harm(stream_id)

    def _top_k(self, row: PlannedRows) -> int:
        """Ids per row for the drafter; none where it is not drafting."""
        session = row.session
        stream_id = session.drafting.stream_id
        if not stream_id or not (row.tree.tokens or self.draft_budget(session)):
            return 0
        return self._feedback_top_k(stream_id)

    def _apply(self, computed: Computed) -> list[SessionStep]:
        decisions = {row.session.key: decision for row, decision in computed.drawn}
        steps: list[SessionStep] = []
        for row in computed.rows:
            try:
                if row.session.blocks:
                    self._computed(row.session, row.segment.root_index + 1)
                decision = decisions.get(row.session.key)
                if decision is not None and row.session.finish_reason is None:
                    steps.append(self._advance(row, decision))
            except Exception as error:
                self._end_faulty([Fault(row.session, error)])
        return steps

    def _advance(self, row: PlannedRows, decision: Decision) -> SessionStep:
        """Append a step's tokens to its session, stopping at a stop token or at the length limit."""
        session, drafting = row.session, row.session.drafting
        base = session.length
        tokens = [row.tree.tokens[node] for node in decision.path] + [decision.bonus]
        tokens = tokens[: session.length_limit - base]
        for index, token in enumerate(tokens):
            if token in session.sampling.stop_token_ids:
                tokens = tokens[: index + 1]
                session.finish_reason = FinishReason.STOP
                break
        if session.finish_reason is None and base + len(tokens) >= session.length_limit:
            session.finish_reason = FinishReason.LENGTH
        accepted = min(len(decision.path), len(tokens))
        session.token_ids += tokens
        self._computed(session, session.num_computed + len(decision.path))
        self._divergence.stepped(session, base, accepted)
        session.steps += 1
        drafted = len(row.tree)
        if drafted:
            self._budget.observe(drafting.stream_id, row.tree, decision.path)
            session.drafted_steps += 1
            session.drafted_tokens += drafted
            session.accepted_tokens += accepted
        self._count(drafted, accepted, len(tokens))
        finish = session.finish_reason
        if finish is not None:
            self._retire(session)
        told = drafting.told_length
        nodes = self.draft_budget(session) if drafting.stream_id and finish is None else 0
        drafting.awaited_since = 0.0
        if nodes:
            self._wait.asked(session)
        # A drafter that need not draft hears of the text with the next request: many sessions' verdicts in
        # every step cost more than drafting could bring.
        speaking = bool(drafting.stream_id and (nodes or drafted or finish is not None))
        if speaking:
            drafting.told_length = session.length
        feedback = None
        if decision.top_k and told == base:
            root = session.token_ids[base - 1]
            feedback = Feedback.of(root, row.tree, decision.top_ids, decision.top_k)
        return SessionStep(
            key=session.key,
            outcome=StepOutcome(
                tuple(tokens), accepted, finish, session.receipt() if finish else None, drafted
            ),
            verdict=Verdict(
                key=session.key,
                base_length=told,
                committed=tuple(session.token_ids[told:]),
                accepted=accepted,
                drafted=drafted,
                feedback=feedback,
                draft_budget=nodes,
                finished=finish is not None,
            ),
            stream_id=drafting.stream_id if speaking else 0,
        )

    def _computed(self, session: Session, positions: int) -> None:
        """Note how far a session's KV reaches; blocks that are full now may be shared."""
        full = positions // BLOCK_SIZE * BLOCK_SIZE
        if full > session.num_computed:
            self.allocator.keep(session.blocks, session.token_ids, full)
        session.num_computed = positions

    def _count(self, drafted: int, accepted: int, committed: int) -> None:
        self.totals = Totals(
            self.totals.session_steps + 1,
            self.totals.drafted_tokens + drafted,
            self.totals.accepted_tokens + accepted,
            self.totals.committed_tokens + committed,
        )
        metrics.COMMITTED.inc(committed)
        if drafted:
            metrics.DRAFTS.inc()
            metrics.DRAFT_TOKENS.inc(drafted)
            metrics.ACCEPTED_TOKENS.inc(accepted)
            for depth in range(accepted):
                metrics.ACCEPTED_PER_POS.labels(position=depth).inc()

    def forget_drafter(self, stream_id: int) -> None:
        """Drop what was learned of a drafter whose stream has ended; call with the table's lock held."""
        self._budget.forget(stream_id)

    def _retire(self, session: Session) -> None:
        self.allocator.keep(session.blocks, session.token_ids, session.num_computed)
        self.allocator.release(session.blocks)
        session.drafting.drop_tree()
        self.table.remove(session)
        self.table.lock.notify_all()
