"""What a computed step does to its sessions: tokens are appended, KV is accounted for, verdicts are made."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from paceline.engine.blocks import BlockAllocator
from paceline.engine.verify import Decision
from paceline.logprobs import pack
from paceline.session import DraftCosts, FinishReason, SessionKey, SourceTokens, add_depths, add_up
from paceline.tree import TokenTree
from paceline.verdict import Feedback, Verdict
from verifier_svc import metrics, sources
from verifier_svc.control import DraftControl
from verifier_svc.divergence import DivergenceCheck
from verifier_svc.events import StepOutcome
from verifier_svc.isolation import Computed, SessionFault
from verifier_svc.load import Load
from verifier_svc.scheduler import PlannedRows
from verifier_svc.sessions import Session, SessionTable


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


class Progress:
    """Moves sessions on, and takes those out that have ended. Hold the table's lock to call a method."""

    def __init__(
        self,
        table: SessionTable,
        allocator: BlockAllocator,
        control: DraftControl,
        divergence: DivergenceCheck,
    ) -> None:
        self.totals = Totals()
        self.load = Load()
        self._table = table
        self._allocator = allocator
        self._control = control
        self._divergence = divergence

    def apply(
        self, computed: Computed, waited_seconds: float = 0.0
    ) -> tuple[list[SessionStep], list[SessionFault]]:
        """What each session of a step got, and the sessions that could not take it.

        `waited_seconds`: for how long the step waited for trees.
        """
        decisions = {row.session.key: decision for row, decision in computed.drawn}
        steps: list[SessionStep] = []
        faults: list[SessionFault] = []
        for row in computed.rows:
            try:
                if row.session.blocks:
                    self._extend_kv(row.session, row.segment.root_index + 1)
                decision = decisions.get(row.session.key)
                if decision is not None and row.session.finish_reason is None:
                    steps.append(self._advance(row, decision, waited_seconds))
            except Exception as error:
                faults.append(SessionFault(row.session, error))
        return steps, faults

    def retire(self, session: Session, reason: FinishReason) -> None:
        """Take a session out before the next step and free its KV. Idempotent."""
        if session.finish_reason is None:
            session.finish_reason = reason
        self._allocator.keep(session.blocks, session.token_ids, session.num_computed, session.text_root)
        self._allocator.release(session.blocks)
        session.drafting.drop_trees()
        self._table.remove(session)
        self._table.lock.notify_all()

    def _advance(self, row: PlannedRows, decision: Decision, waited_seconds: float) -> SessionStep:
        if decision.fault is not None:
            raise decision.fault
        session = row.session
        base = session.length
        tokens, finish = _final_tokens(session, row, decision)
        accepted = min(len(decision.path), len(tokens))
        if session.matcher is not None:
            session.matcher.commit(tokens)
        session.token_ids += tokens
        self._extend_kv(session, session.num_computed + len(decision.path))
        self._divergence.stepped(session, base, accepted)
        session.steps += 1
        drafted = len(row.tree)
        if session.drafting.wanted:
            self.load.wanted(offered=row.offered)
        told: tuple[SourceTokens, ...] = ()
        if drafted:
            self._control.budget.observe(row.stream_id, row.nodes, row.tree.parents, decision.path)
            told = sources.counts(row.nodes, decision.path[:accepted], row.sources)
            session.source_tokens = add_up((*session.source_tokens, *told))
            session.drafted_steps += 1
            session.drafted_tokens += drafted
            session.accepted_tokens += accepted
            session.accepted_by_depth = add_depths(session.accepted_by_depth, (1,) * accepted)
        costs = DraftCosts(_by_depth(row.tree), waited_seconds, session.drafting.take_bytes())
        session.draft_costs = session.draft_costs.and_(costs)
        self._count(drafted, accepted, len(tokens), told)
        if finish is not None:
            self.retire(session, finish)
        receipt = session.receipt() if finish is not None else None
        outcome = StepOutcome(
            tuple(tokens),
            accepted,
            finish,
            receipt,
            drafted,
            told,
            logprobs=pack(decision.logprobs[: len(tokens)]),
            prompt_logprobs=_prompt_logprobs(session),
            drafts=costs,
        )
        return self._told(row, decision, outcome, base=base)

    def _told(self, row: PlannedRows, decision: Decision, outcome: StepOutcome, *, base: int) -> SessionStep:
        """The session's step with the verdict for its drafter, which is asked for its next tree thereby."""
        session, drafting = row.session, row.session.drafting
        finished = outcome.finish is not None
        nodes = self._control.nodes_for(session) if drafting.stream_id and not finished else 0
        self._control.stepped(session, nodes=nodes)
        known = drafting.told_length
        # A drafter that need not draft hears of the text with the next request: many sessions' verdicts in
        # every step cost more than drafting could bring.
        speaking = bool(drafting.stream_id and (nodes or outcome.drafted or finished))
        if speaking:
            drafting.told_length = session.length
        feedback = None
        if decision.top_k and known == base:
            root = session.token_ids[base - 1]
            feedback = Feedback.of(root, row.tree, decision.top_ids, decision.top_k)
        verdict = Verdict(
            key=session.key,
            base_length=known,
            committed=tuple(session.token_ids[known:]),
            accepted=outcome.accepted,
            drafted=outcome.drafted,
            feedback=feedback,
            draft_budget=nodes,
            finished=finished,
        )
        return SessionStep(session.key, outcome, verdict, drafting.stream_id if speaking else 0)

    def _extend_kv(self, session: Session, positions: int) -> None:
        """The session's KV is computed up to `positions`; blocks that are full now may be shared."""
        block_size = self._allocator.block_size
        full = positions // block_size * block_size
        if full > session.num_computed:
            self._allocator.keep(session.blocks, session.token_ids, full, session.text_root)
        session.num_computed = positions

    def _count(self, drafted: int, accepted: int, committed: int, by_source: Sequence[SourceTokens]) -> None:
        self.totals = Totals(
            self.totals.session_steps + 1,
            self.totals.drafted_tokens + drafted,
            self.totals.accepted_tokens + accepted,
            self.totals.committed_tokens + committed,
        )
        metrics.SESSION_STEPS.inc()
        metrics.COMMITTED_DRAFTED.inc(accepted)
        metrics.COMMITTED_OWN.inc(committed - accepted)
        if drafted:
            metrics.DRAFTS.inc()
            metrics.DRAFT_TOKENS.inc(drafted)
            metrics.ACCEPTED_TOKENS.inc(accepted)
            for depth in range(accepted):
                metrics.ACCEPTED_PER_POS.labels(position=depth).inc()
        for each in by_source:
            label = sources.LABELS.of(each.source)
            metrics.SOURCE_DRAFT_TOKENS.labels(source=label).inc(each.drafted_tokens)
            metrics.SOURCE_ACCEPTED_TOKENS.labels(source=label).inc(each.accepted_tokens)


def _prompt_logprobs(session: Session) -> bytes:
    """Those that the client is told now: with the first tokens, once."""
    scores = session.prompt_scores
    if scores is None or scores.told:
        return b""
    scores.told = True
    return pack(scores.known)


def _by_depth(tree: TokenTree) -> tuple[int, ...]:
    counts = Counter(tree.depths())
    return add_depths((), [counts[depth] for depth in range(1, max(counts, default=0) + 1)])


def _final_tokens(
    session: Session, row: PlannedRows, decision: Decision
) -> tuple[list[int], FinishReason | None]:
    """The tokens that a step adds, up to a stop token or the length limit; why the session ends, if so."""
    tokens = [row.tree.tokens[node] for node in decision.path] + [decision.bonus]
    tokens = tokens[: session.length_limit - session.length]
    for index, token in enumerate(tokens):
        if token in session.sampling.stop_token_ids:
            return tokens[: index + 1], FinishReason.STOP
    if session.length + len(tokens) >= session.length_limit:
        return tokens, FinishReason.LENGTH
    return tokens, None
