"""Spans: how they are opened, how a trace crosses processes, and the attributes that they may have.

No attribute holds what a client said or was answered. docs/operations.md lists the spans of a request.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import Any, Self

import grpc
import structlog
from opentelemetry import context as otel_context
from opentelemetry import trace

from paceline import __version__
from paceline.service import traces

# Of a session, at any service.
SESSION_ID = "paceline.session_id"
EPOCH = "paceline.epoch"
VERIFIER = "paceline.verifier"
DRAFTER = "paceline.drafter"
PROMPT_TOKENS = "paceline.prompt_tokens"
COMMITTED_TOKENS = "paceline.committed_tokens"
ACCEPTED_TOKENS = "paceline.accepted_tokens"
DRAFTED_TOKENS = "paceline.drafted_tokens"
ACCEPTANCE_LENGTH = "paceline.acceptance_length"
FINISH_REASON = "paceline.finish_reason"
# Of a request.
FACE = "paceline.face"
STATUS = "http.response.status_code"
# Of a step: its number since the verifier's start, the sessions and rows of its batch, the nodes that it asks
# of each drafting session; this session's rows, and the length of its text before the step.
STEP = "paceline.step"
BATCH_SESSIONS = "paceline.batch.sessions"
BATCH_ROWS = "paceline.batch.rows"
DRAFT_BUDGET = "paceline.draft_budget"
ROWS = "paceline.rows"
BASE_LENGTH = "paceline.base_length"
DURABLE = "paceline.durable"
# Over all steps of a session or all its trees, also those without a span.
STEPS = "paceline.steps"
DRAFTED_STEPS = "paceline.drafted_steps"
WAIT_SECONDS = "paceline.seconds.wait_for_trees"
FORWARD_SECONDS = "paceline.seconds.forward"
COMMIT_SECONDS = "paceline.seconds.commit"
# Draft time and round trip: from requests for trees to the last tree that came for each; and the share of it
# in which steps waited instead of computing.
REPLY_SECONDS = "paceline.seconds.reply"
EXPOSED_SHARE = "paceline.exposed_share"
TREES = "paceline.trees"
DRAFT_SECONDS = "paceline.seconds.draft"
# Nodes that a tree was asked to have.
ASKED_NODES = "paceline.asked_nodes"
# Of a verifier that was chosen: tokens of the prompt whose KV it is believed to hold, and predicted seconds
# to the first token.
HELD_TOKENS = "paceline.held_tokens"
PREDICTED_SECONDS = "paceline.predicted_seconds"
# Why a session was moved, or how a decision was come to; and of a decision about replicas.
REASON = "paceline.reason"
TIER = "paceline.tier"
POOL = "paceline.pool"
REPLICAS = "paceline.replicas"

# Header, and key of gRPC metadata, that tells a caller its request's span, in the form of a traceparent.
RESPONSE_HEADER = "traceresponse"


@cache
def tracer() -> trace.Tracer:
    """The tracer of all our spans."""
    return trace.get_tracer("paceline", __version__)


def inject(span: trace.Span) -> list[tuple[str, str]]:
    """gRPC metadata that carries a span's trace (W3C traceparent)."""
    carrier: dict[str, str] = {}
    traces.propagator().inject(carrier, context=trace.set_span_in_context(span))
    return list(carrier.items())


def extract(metadata: Mapping[str, str]) -> otel_context.Context:
    """The trace context in gRPC metadata or HTTP headers (lower-case names)."""
    return traces.propagator().extract(dict(metadata))


def extract_rpc(context: grpc.aio.ServicerContext[Any, Any]) -> otel_context.Context:
    """The trace context of a call's caller."""
    return extract(
        {key: value for key, value in context.invocation_metadata() or () if isinstance(value, str)}
    )


def response(span: trace.Span) -> str:
    """The value of `RESPONSE_HEADER`; empty if there is no trace."""
    told = span.get_span_context()
    if not told.is_valid:
        return ""
    ids = f"{trace.format_trace_id(told.trace_id)}-{trace.format_span_id(told.span_id)}"
    return f"00-{ids}-{int(told.trace_flags):02x}"


def exemplar(span: trace.Span) -> dict[str, str] | None:
    """Labels that lead from a histogram to the span's trace; None if nobody records it."""
    told = span.get_span_context()
    if not (told.is_valid and told.trace_flags.sampled):
        return None
    return {"trace_id": trace.format_trace_id(told.trace_id)}


def name_in_logs(span: trace.Span) -> None:
    """Give all further lines that this task logs, and its tasks, the id of the span's trace."""
    told = span.get_span_context()
    if told.is_valid:
        structlog.contextvars.bind_contextvars(trace_id=trace.format_trace_id(told.trace_id))


@contextmanager
def span(
    name: str, parent: trace.Span | otel_context.Context, *, kind: trace.SpanKind = trace.SpanKind.INTERNAL
) -> Iterator[trace.Span]:
    """A span under `parent`, ended when the block is left, with the kind of error that left it if one did.

    It is never made the current span: our blocks stand in async generators, whose steps may run in
    different contexts, and a context variable set in one cannot be reset in another.
    """
    context = trace.set_span_in_context(parent) if isinstance(parent, trace.Span) else parent
    opened = tracer().start_span(name, context=context, kind=kind)
    try:
        yield opened
    except Exception as error:
        fail(opened, error)
        raise
    finally:
        if opened.is_recording():
            opened.end()


def fail(span: trace.Span, error: Exception) -> None:
    """Mark a span as failed by the kind of `error`, and not by its message, which may quote a client."""
    span.set_status(trace.StatusCode.ERROR, type(error).__name__)


@contextmanager
def rpc_span(name: str, context: grpc.aio.ServicerContext[Any, Any]) -> Iterator[trace.Span]:
    """A server span that continues the caller's trace, whose id the call's log lines get."""
    with span(name, extract_rpc(context), kind=trace.SpanKind.SERVER) as opened:
        name_in_logs(opened)
        yield opened


class Stages:
    """Children of one span that tile it: each begins at the moment at which the one before ends.

    Of a span that is not recorded there are none, and nothing is done. Times are in nanoseconds since 1970;
    without one it is now. Used as a context manager, the last one ends with the block.
    """

    def __init__(self, parent: trace.Span) -> None:
        self.parent = parent
        # The current stage, for its attributes and children.
        self.current: trace.Span = trace.INVALID_SPAN
        self._name = ""
        self._context = trace.set_span_in_context(parent) if parent.is_recording() else None

    def enter(self, name: str, at: int | None = None) -> None:
        """Begin a stage, unless it is the current one."""
        if self._context is None or name == self._name:
            return
        at = at or time.time_ns()
        self.end(at)
        self._name = name
        self.current = tracer().start_span(name, context=self._context, start_time=at)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.end()

    def end(self, at: int | None = None) -> None:
        """End the current stage, if there is one."""
        if self._name:
            self.current.end(at or time.time_ns())
            self._name = ""
            self.current = trace.INVALID_SPAN


# Below this all are kept; from here on this many of each doubling's, a power of two.
_KEPT_FIRST, _KEPT_OF_DOUBLING = 16, 4


class Thinning:
    """Which of a session's steps, or trees, get a span: fewer and fewer, so that long answers stay readable.

    They are told by how many tokens the session had generated. The first in each of these ranges is kept: 0,
    1, ... 15, then a quarter of each doubling (16 to 19, ... 28 to 31, 32 to 39, ...): at most 53 of 10,000
    tokens. Where two processes count alike, they keep the same.
    """

    def __init__(self) -> None:
        self._last = -1

    def keeps(self, tokens: int) -> bool:
        """Whether this one is kept. Ask once for each; `tokens` never falls."""
        mark = _range_of(tokens)
        if mark == self._last:
            return False
        self._last = mark
        return True


def _range_of(tokens: int) -> int:
    if tokens < _KEPT_FIRST:
        return tokens
    doublings = tokens.bit_length() - _KEPT_FIRST.bit_length()
    part = (tokens >> doublings) * _KEPT_OF_DOUBLING // _KEPT_FIRST - _KEPT_OF_DOUBLING
    return _KEPT_FIRST + doublings * _KEPT_OF_DOUBLING + part
