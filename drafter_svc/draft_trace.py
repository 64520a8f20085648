"""The trace of one session at this drafter: its join, and some of its trees. On the event loop."""

from __future__ import annotations

import time

from opentelemetry import trace
from opentelemetry.trace import Span

from paceline.service import spans


class DraftTrace:
    """The spans below `drafter.session`, which lasts until the session is forgotten."""

    def __init__(self, span: Span, known_length: int) -> None:
        """`known_length`: length of the text that the gateway told."""
        self._span = span
        self._context = trace.set_span_in_context(span)
        self._known_length = known_length
        self._kept = spans.Thinning()
        self._began = time.time_ns()
        self._joined = False
        # When the session began to wait for a tree; and for the one that is drafted now.
        self._waiting = self._drafting = 0
        self._trees = self._nodes = self._accepted = self._draft_ns = 0

    @classmethod
    def of(cls, span: Span, known_length: int) -> DraftTrace | None:
        """The trace of a session with this span; None if nobody records it."""
        return cls(span, known_length) if span.is_recording() else None

    def waits(self) -> None:
        """The session waits for a tree from now on: it joins, or a verdict came."""
        self._waiting = time.time_ns()

    def asked(self) -> None:
        """The tree is drafted now."""
        self._drafting = self._waiting

    def heard(self, accepted: int) -> None:
        """A verdict came that accepted so many nodes. The first one answers the join."""
        self._accepted += accepted
        if not self._joined:
            self._joined = True
            self._child("drafter.join", self._began, time.time_ns(), {})

    def drafted(self, base_length: int, *, asked: int, nodes: int, sessions: int) -> None:
        """A tree of so many nodes is about to be sent, of a batch for so many sessions."""
        now = time.time_ns()
        self._trees += 1
        self._nodes += nodes
        self._draft_ns += now - self._drafting
        if self._kept.keeps(base_length - self._known_length):
            told = {
                spans.BASE_LENGTH: base_length,
                spans.ASKED_NODES: asked,
                spans.DRAFTED_TOKENS: nodes,
                spans.BATCH_SESSIONS: sessions,
            }
            self._child("drafter.draft", self._drafting, now, told)

    def end(self) -> None:
        """The session is forgotten. Idempotent."""
        if not self._span.is_recording():
            return
        self._span.set_attributes(
            {
                spans.TREES: self._trees,
                spans.DRAFTED_TOKENS: self._nodes,
                spans.ACCEPTED_TOKENS: self._accepted,
                spans.DRAFT_SECONDS: self._draft_ns / 1e9,
            }
        )
        self._span.end()

    def _child(self, name: str, began: int, ended: int, attributes: dict[str, int]) -> None:
        child = spans.tracer().start_span(
            name, context=self._context, attributes=attributes, start_time=began
        )
        child.end(ended)
