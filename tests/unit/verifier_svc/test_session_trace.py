"""A session's trace at the verifier: stages that tile it, steps below them, links to the batch, a bound."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from bench.engine_loop import loaded
from paceline.engine.model import Decoder
from paceline.sampling import SamplingParams
from paceline.service import spans
from paceline.session import FinishReason, Receipt, SessionKey
from tests.unit.verifier_svc.step_loops import running_loop
from tests.waiting import wait_until
from verifier_svc.events import StepOutcome
from verifier_svc.session_trace import SessionTrace, StepTimes, TracedRows
from verifier_svc.sessions import Session

PROMPT, TOKENS = 7, 3
MS = 1_000_000
UNSAMPLED = {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00"}


@pytest.fixture(scope="module")
def decoder(tiny_model: Path) -> Iterator[Decoder]:
    with loaded(tiny_model) as made:
        yield made


class Clock:
    """The time of day, which only the steps below advance."""

    def __init__(self) -> None:
        self.now = time.time_ns()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(time, "time_ns", lambda: made.now)
    return made


class Steps:
    """Steps of one batch of traced sessions."""

    def __init__(self, clock: Clock, *traces: SessionTrace) -> None:
        self.clock = clock
        self.lengths = dict.fromkeys(traces, PROMPT)
        self.number = 0

    def times(self, *, wait: int = 0) -> StepTimes:
        self.number += 1
        began = self.clock.now + MS
        self.clock.now = began + wait + 5 * MS
        rows = [
            TracedRows(each, SessionKey(str(number), 1), length, 5, 4)
            for number, (each, length) in enumerate(self.lengths.items())
        ]
        return StepTimes(
            self.number,
            began=began,
            waited=began + wait,
            forward=began + wait + MS,
            computed=began + wait + 4 * MS,
            ended=began + wait + 5 * MS,
            sessions=9,
            rows=33,
            draft_budget=4,
            traced=rows,
        )

    def prompt(self) -> None:
        """A part of the prompts is computed."""
        times = self.times()
        for rows in times.traced:
            rows.trace.stepped(times, rows, None)

    def decode(self, tokens: int = 3, *, wait: int = 0) -> list[StepOutcome]:
        """Each session gets tokens, which are emitted at once."""
        times = self.times(wait=wait)
        outcomes = []
        for rows in times.traced:
            outcome = StepOutcome(tuple(range(tokens)), tokens - 1, drafted=4)
            rows.trace.stepped(times, rows, outcome)
            self.clock.now += MS
            rows.trace.emitted([outcome], durable=True)
            self.lengths[rows.trace] += tokens
            outcomes.append(outcome)
        return outcomes


def _traced() -> tuple[trace.Span, SessionTrace]:
    span = spans.tracer().start_span("verifier.session")
    made = SessionTrace.of(span, PROMPT)
    assert made is not None
    return span, made


def _named(found: Sequence[ReadableSpan], name: str) -> list[ReadableSpan]:
    return [span for span in found if span.name == name]


def _parent(found: Sequence[ReadableSpan], child: ReadableSpan) -> str:
    assert child.parent is not None
    (parent,) = [span for span in found if span.context.span_id == child.parent.span_id]
    return parent.name


def test_stages_tile_the_session_and_hold_its_steps(
    recorded_spans: InMemorySpanExporter, clock: Clock
) -> None:
    _, session = _traced()
    steps = Steps(clock, session)
    steps.prompt()
    steps.decode()
    steps.decode(wait=2 * MS)
    session.end(Receipt(steps=2, committed_tokens=6), FinishReason.LENGTH)
    found = recorded_spans.get_finished_spans()
    stages = [
        span for span in found if span.name in ("verifier.queue", "verifier.prefill", "verifier.decode")
    ]
    assert [stage.name for stage in stages] == ["verifier.queue", "verifier.prefill", "verifier.decode"]
    assert all(one.end_time == other.start_time for one, other in pairwise(stages))
    below = [_parent(found, step) for step in _named(found, "verifier.step")]
    assert below == ["verifier.prefill", "verifier.prefill", "verifier.decode"]
    assert {_parent(found, commit) for commit in _named(found, "verifier.commit")} == {"verifier.decode"}
    assert [_parent(found, each) for each in _named(found, "verifier.forward")] == ["verifier.step"] * 3
    # Only the last step waited for a tree.
    (wait,) = _named(found, "verifier.wait_for_trees")
    last = _named(found, "verifier.step")[-1]
    assert wait.parent is not None
    assert wait.parent.span_id == last.context.span_id


def test_a_step_says_what_was_in_its_batch_and_what_came_of_it(
    recorded_spans: InMemorySpanExporter, clock: Clock
) -> None:
    _, session = _traced()
    Steps(clock, session).decode()
    session.end(Receipt())
    found = recorded_spans.get_finished_spans()
    (step,) = _named(found, "verifier.step")
    assert dict(step.attributes or {}) == {
        "paceline.step": 1,
        "paceline.batch.sessions": 9,
        "paceline.batch.rows": 33,
        "paceline.draft_budget": 4,
        "paceline.rows": 5,
        "paceline.base_length": PROMPT,
        "paceline.drafted_tokens": 4,
        "paceline.accepted_tokens": 2,
        "paceline.committed_tokens": 3,
    }
    (commit,) = _named(found, "verifier.commit")
    assert dict(commit.attributes or {}) == {
        "paceline.step": 1,
        "paceline.committed_tokens": 3,
        "paceline.durable": True,
    }


def test_steps_are_linked_to_the_traces_of_the_batch(
    recorded_spans: InMemorySpanExporter, clock: Clock
) -> None:
    (one, first), (other, second) = _traced(), _traced()
    Steps(clock, first, second).decode()
    steps = _named(recorded_spans.get_finished_spans(), "verifier.step")
    assert [[link.context.span_id for link in step.links] for step in steps] == [
        [other.get_span_context().span_id],
        [one.get_span_context().span_id],
    ]
    many = [_traced()[1] for _ in range(20)]
    recorded_spans.clear()
    Steps(clock, *many).decode()
    steps = _named(recorded_spans.get_finished_spans(), "verifier.step")
    assert {len(step.links) for step in steps} == {8}


def test_a_long_answer_has_few_spans_and_all_of_its_time_summed(
    recorded_spans: InMemorySpanExporter, clock: Clock
) -> None:
    _, session = _traced()
    steps = Steps(clock, session)
    for _ in range(4000):
        steps.decode(wait=MS)
    session.end(Receipt(steps=4000, committed_tokens=12_000), FinishReason.STOP)
    found = recorded_spans.get_finished_spans()
    assert len(_named(found, "verifier.step")) <= 53
    assert len(found) <= 4 * 53 + 5
    (whole,) = _named(found, "verifier.session")
    told = dict(whole.attributes or {})
    assert told["paceline.seconds.forward"] == pytest.approx(4000 * 3e-3)
    assert told["paceline.seconds.wait_for_trees"] == pytest.approx(4000 * 1e-3)
    assert told["paceline.seconds.commit"] == pytest.approx(4000 * 1e-3)
    assert told["paceline.steps"] == 4000
    assert told["paceline.acceptance_length"] == 3.0
    assert told["paceline.finish_reason"] == "stop"


def test_a_session_that_is_broken_off_leaves_the_end_to_its_call(
    recorded_spans: InMemorySpanExporter, clock: Clock
) -> None:
    span, session = _traced()
    Steps(clock, session).prompt()
    session.end(Receipt())
    assert span.is_recording()
    # What a step in hand still says makes no span behind the end.
    before = len(recorded_spans.get_finished_spans())
    Steps(clock, session).decode()
    assert len(recorded_spans.get_finished_spans()) == before


def test_a_session_that_is_broken_off_in_its_first_step_was_not_in_the_queue(
    recorded_spans: InMemorySpanExporter, clock: Clock
) -> None:
    _, session = _traced()
    clock.now += MS
    session.taken_at = clock.now
    clock.now += 9 * MS
    session.end(Receipt())
    queue, prefill = recorded_spans.get_finished_spans()
    assert (queue.name, prefill.name) == ("verifier.queue", "verifier.prefill")
    assert queue.end_time == prefill.start_time == clock.now - 9 * MS


def test_what_is_not_sampled_has_no_trace(recorded_spans: InMemorySpanExporter) -> None:
    span = spans.tracer().start_span("verifier.session", context=spans.extract(UNSAMPLED))
    assert SessionTrace.of(span, PROMPT) is None


async def test_a_step_loop_times_its_steps_and_notes_only_who_is_traced(
    decoder: Decoder, recorded_spans: InMemorySpanExporter
) -> None:
    """Without a trace, a step makes no span and lists no session; with one, the numbers of its batch."""
    with running_loop(decoder, lambda tested, step: None, prefix_cache=False) as tested:
        tested.add(_session("plain"))
        await wait_until(lambda: len(tested.times) == TOKENS, "it has ended", 60)
        assert not any(times.traced for times in tested.times)
        assert not recorded_spans.get_finished_spans()
        _, traced = _traced()
        tested.add(_session("traced", traced))
        await wait_until(lambda: len(tested.times) == 2 * TOKENS, "the other has ended", 60)
    assert [times.number for times in tested.times] == [*range(1, 2 * TOKENS + 1)]
    for one, other in pairwise(tested.times):
        assert one.began <= one.waited <= one.forward <= one.computed <= one.ended <= other.began
    later = tested.times[TOKENS:]
    assert [(rows.trace, rows.base_length) for times in later for rows in times.traced] == [
        (traced, PROMPT + number) for number in range(TOKENS)
    ]
    assert [(times.sessions, times.rows) for times in later] == [(1, PROMPT), (1, 1), (1, 1)]
    assert later[0].exemplar == traced.exemplar


def _session(name: str, traced: SessionTrace | None = None) -> Session:
    return Session(
        key=SessionKey(name, 1),
        prompt_length=PROMPT,
        token_ids=[5, 9, 2, 7, 1, 3, 8],
        sampling=SamplingParams(max_tokens=TOKENS),
        length_limit=PROMPT + TOKENS,
        opened_length=PROMPT,
        trace=traced,
    )
