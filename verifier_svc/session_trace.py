"""The trace of one session at this verifier: its stages, and some of its steps.

Steps are timed on the engine's thread, in integers; spans are made of them on the event loop, once their
tokens and verdicts are on their way. Sessions that nobody traces have no `SessionTrace`, and cost nothing.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

from opentelemetry import trace
from opentelemetry.trace import Link, Span

from paceline.service import spans
from paceline.session import FinishReason, Receipt, SessionKey
from verifier_svc.events import StepOutcome

# Most links of a step to other sessions of its batch.
_MAX_LINKS = 8
# Shorter waits for trees have no span: the loop only looked whether there is one to wait for.
_WAIT_NS = 100_000


@dataclass(frozen=True, slots=True)
class TracedRows:
    """A traced session's rows of a step."""

    trace: SessionTrace
    key: SessionKey
    # Length of its text before the step; its rows in all, and of these its tree's.
    base_length: int
    rows: int
    nodes: int


@dataclass(slots=True)
class StepTimes:
    """One step of the loop: when it did what (`time.time_ns()`), and what it computed."""

    # Since the verifier's start, from 1.
    number: int
    # When the loop turned to the step, and until when it waited for trees.
    began: int
    waited: int = 0
    # When its forward, with draws and acceptance, began and ended; when its sessions had moved on.
    forward: int = 0
    computed: int = 0
    ended: int = 0
    sessions: int = 0
    rows: int = 0
    # Nodes that it asks of each drafting session.
    draft_budget: int = 0
    traced: Sequence[TracedRows] = ()

    @property
    def exemplar(self) -> dict[str, str] | None:
        """Labels that lead from a histogram to a trace with this step."""
        return self.traced[0].trace.exemplar if self.traced else None


@dataclass(frozen=True, slots=True)
class _Uncommitted:
    """Tokens on their way to the store. `number`: their step's."""

    outcome: StepOutcome
    since: int
    number: int
    kept: bool


class SessionTrace:
    """The spans below `verifier.session`. On the event loop.

    Its stages `verifier.queue`, `verifier.prefill` and `verifier.decode` tile it. Steps are children of the
    stage that they belong to, commits of `verifier.decode`: one overlaps the steps behind its own.
    """

    def __init__(self, span: Span, opened_length: int) -> None:
        """`opened_length`: length of the session's text when it was opened."""
        self.exemplar = spans.exemplar(span)
        # When the loop turned to the session's first step. Set on the engine's thread.
        self.taken_at = 0
        self._span = span
        self._opened_length = opened_length
        self._opened_at = time.time_ns()
        self._stages = spans.Stages(span)
        self._stages.enter("verifier.queue")
        self._chunks = 0
        self._kept_chunks = spans.Thinning()
        self._kept_steps = spans.Thinning()
        self._begun = self._decoding = self._ended = False
        self._uncommitted: deque[_Uncommitted] = deque()
        self._wait_ns = self._forward_ns = self._commit_ns = 0

    @classmethod
    def of(cls, span: Span, opened_length: int) -> SessionTrace | None:
        """The trace of a session with this span; None if nobody records it."""
        return cls(span, opened_length) if span.is_recording() else None

    def stepped(self, times: StepTimes, rows: TracedRows, outcome: StepOutcome | None) -> None:
        """The session took part in a step; `outcome` is None where that computed part of its prompt only."""
        if self._ended:
            return
        began = max(times.began, self._opened_at)
        self._begin_prefill(began)
        self._wait_ns += max(0, times.waited - began)
        self._forward_ns += times.computed - times.forward
        kept = self._keeps(rows, outcome)
        if kept:
            self._make_step(times, rows, outcome, began)
        if outcome is None:
            return
        if not self._decoding:
            self._decoding = True
            self._stages.enter("verifier.decode", times.ended)
        self._uncommitted.append(_Uncommitted(outcome, time.time_ns(), times.number, kept))

    def emitted(self, outcomes: Sequence[StepOutcome], *, durable: bool) -> None:
        """These outcomes, the oldest ones, were emitted; `durable`: and are in the store."""
        if self._ended:
            return
        now = time.time_ns()
        for outcome in outcomes:
            if not self._uncommitted or self._uncommitted[0].outcome is not outcome:
                continue
            told = self._uncommitted.popleft()
            self._commit_ns += now - told.since
            if told.kept:
                self._child(
                    "verifier.commit",
                    self._stages.current,
                    told.since,
                    now,
                    {
                        spans.STEP: told.number,
                        spans.COMMITTED_TOKENS: len(outcome.token_ids),
                        spans.DURABLE: durable,
                    },
                )

    def end(
        self, receipt: Receipt, reason: FinishReason | None = None, *, reply_seconds: float = 0.0
    ) -> None:
        """The session is over here, and its span too if it has finished for a `reason`. Idempotent.

        `reply_seconds`: how long its drafters took to answer, draft time and round trip together.
        """
        if self._ended:
            return
        self._ended, now = True, time.time_ns()
        if self.taken_at:
            # Its first step may still run, and say nothing any more.
            self._begin_prefill(self.taken_at)
        self._stages.end(now)
        self._span.set_attributes(
            {
                spans.STEPS: receipt.steps,
                spans.DRAFTED_STEPS: receipt.drafted_steps,
                spans.DRAFTED_TOKENS: receipt.drafted_tokens,
                spans.ACCEPTED_TOKENS: receipt.accepted_tokens,
                spans.COMMITTED_TOKENS: receipt.committed_tokens,
                spans.ACCEPTANCE_LENGTH: receipt.acceptance_length,
                spans.WAIT_SECONDS: self._wait_ns / 1e9,
                spans.FORWARD_SECONDS: self._forward_ns / 1e9,
                spans.COMMIT_SECONDS: self._commit_ns / 1e9,
                spans.REPLY_SECONDS: reply_seconds,
            }
        )
        if reply_seconds:
            # Other sessions' trees may have been waited for longer than its own took.
            self._span.set_attribute(spans.EXPOSED_SHARE, min(1.0, self._wait_ns / 1e9 / reply_seconds))
        if reason is not None:
            self._span.set_attribute(spans.FINISH_REASON, str(reason))
            self._span.end(now)

    def _begin_prefill(self, at: int) -> None:
        if not self._begun:
            self._begun = True
            self._stages.enter("verifier.prefill", max(at, self._opened_at))

    def _keeps(self, rows: TracedRows, outcome: StepOutcome | None) -> bool:
        if outcome is not None:
            return self._kept_steps.keeps(rows.base_length - self._opened_length)
        self._chunks += 1
        return self._kept_chunks.keeps(self._chunks)

    def _make_step(self, times: StepTimes, rows: TracedRows, outcome: StepOutcome | None, began: int) -> None:
        told = {
            spans.STEP: times.number,
            spans.BATCH_SESSIONS: times.sessions,
            spans.BATCH_ROWS: times.rows,
            spans.DRAFT_BUDGET: times.draft_budget,
            spans.ROWS: rows.rows,
            spans.BASE_LENGTH: rows.base_length,
        }
        if outcome is not None:
            told[spans.DRAFTED_TOKENS] = rows.nodes
            told[spans.ACCEPTED_TOKENS] = outcome.accepted
            told[spans.COMMITTED_TOKENS] = len(outcome.token_ids)
        others = (other.trace for other in times.traced if other.trace is not self)
        links = [Link(other._span.get_span_context()) for other in islice(others, _MAX_LINKS)]
        step = spans.tracer().start_span(
            "verifier.step",
            context=trace.set_span_in_context(self._stages.current),
            attributes=told,
            links=links,
            start_time=began,
        )
        if times.waited - began >= _WAIT_NS:
            self._child("verifier.wait_for_trees", step, began, times.waited)
        self._child("verifier.forward", step, times.forward, times.computed)
        step.end(times.ended)

    @staticmethod
    def _child(
        name: str, parent: Span, began: int, ended: int, attributes: Mapping[str, int | bool] | None = None
    ) -> None:
        context = trace.set_span_in_context(parent)
        child = spans.tracer().start_span(name, context=context, attributes=attributes, start_time=began)
        child.end(ended)
