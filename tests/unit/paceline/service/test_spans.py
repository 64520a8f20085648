"""Spans: a trace that crosses processes, stages that tile their span, and which steps are kept."""

from __future__ import annotations

from itertools import pairwise

import pytest
import structlog
from opentelemetry import trace
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from paceline.service import spans

TRACE = "0af7651916cd43dd8448eb211c80319c"
UNSAMPLED = {"traceparent": f"00-{TRACE}-b7ad6b7169203331-00"}


def test_a_trace_goes_on_in_the_process_that_is_called(recorded_spans: InMemorySpanExporter) -> None:
    with spans.span("caller", trace.INVALID_SPAN) as caller:
        metadata = spans.inject(caller)
        assert [name for name, _ in metadata] == ["traceparent"]
        with spans.span("called", spans.extract(dict(metadata))):
            pass
    called, calling = recorded_spans.get_finished_spans()
    assert called.context.trace_id == calling.context.trace_id
    assert called.parent is not None
    assert called.parent.span_id == calling.context.span_id


@pytest.mark.parametrize("metadata", [{}, {"traceparent": "nonsense"}, {"traceparent": "00-0-0-00"}])
def test_a_caller_without_a_trace_begins_a_new_one(
    recorded_spans: InMemorySpanExporter, metadata: dict[str, str]
) -> None:
    with spans.span("called", spans.extract(metadata)):
        pass
    (called,) = recorded_spans.get_finished_spans()
    assert called.parent is None


def test_a_span_tells_the_kind_of_error_that_left_it_and_not_its_words(
    recorded_spans: InMemorySpanExporter,
) -> None:
    # Not words that the hexadecimal ids of a span could spell.
    with pytest.raises(ValueError, match="private"), spans.span("failing", trace.INVALID_SPAN):
        raise ValueError("private words")
    (failed,) = recorded_spans.get_finished_spans()
    assert failed.status.status_code is trace.StatusCode.ERROR
    assert failed.status.description == "ValueError"
    assert "private" not in failed.to_json()


def test_a_span_is_never_the_current_one(recorded_spans: InMemorySpanExporter) -> None:
    with spans.span("open", trace.INVALID_SPAN):
        assert trace.get_current_span() is trace.INVALID_SPAN


def test_stages_tile_their_span(recorded_spans: InMemorySpanExporter) -> None:
    with spans.span("whole", trace.INVALID_SPAN) as whole, spans.Stages(whole) as stages:
        stages.enter("first")
        stages.enter("first")
        stages.enter("second", at=stages.current.start_time + 5)  # type: ignore[attr-defined]
        stages.enter("third")
    *parts, parent = recorded_spans.get_finished_spans()
    assert [part.name for part in parts] == ["first", "second", "third"]
    assert all(part.parent is not None and part.parent.span_id == parent.context.span_id for part in parts)
    assert all(one.end_time == other.start_time for one, other in pairwise(parts))
    assert parts[0].end_time == parts[0].start_time + 5  # type: ignore[operator]
    assert parts[-1].end_time is not None
    assert parent.end_time is not None
    assert parts[-1].end_time <= parent.end_time


def test_what_a_caller_does_not_sample_has_no_span(recorded_spans: InMemorySpanExporter) -> None:
    with spans.span("whole", spans.extract(UNSAMPLED)) as whole, spans.Stages(whole) as stages:
        stages.enter("first")
        assert stages.current is trace.INVALID_SPAN
        assert spans.exemplar(whole) is None
        # The next service is told so, too.
        assert dict(spans.inject(whole))["traceparent"].endswith("-00")
    assert not recorded_spans.get_finished_spans()


def test_a_trace_is_named_to_callers_in_logs_and_beside_histograms(
    recorded_spans: InMemorySpanExporter,
) -> None:
    with spans.span(
        "request", spans.extract(UNSAMPLED | {"traceparent": f"00-{TRACE}-b7ad6b7169203331-01"})
    ) as span:
        own = trace.format_span_id(span.get_span_context().span_id)
        assert spans.response(span) == f"00-{TRACE}-{own}-01"
        assert spans.exemplar(span) == {"trace_id": TRACE}
        with structlog.contextvars.bound_contextvars():
            spans.name_in_logs(span)
            assert structlog.contextvars.get_contextvars()["trace_id"] == TRACE
            structlog.contextvars.unbind_contextvars("trace_id")
    assert spans.response(trace.INVALID_SPAN) == ""


def test_the_first_steps_are_kept_then_ever_fewer() -> None:
    thinning = spans.Thinning()
    kept = [tokens for tokens in range(10_000) if thinning.keeps(tokens)]
    assert kept[:24] == [*range(16), 16, 20, 24, 28, 32, 40, 48, 56]
    assert len(kept) == 53
    # A quarter of what was kept before, at most, lies between two.
    assert all(after - before <= max(1, before / 4) for before, after in pairwise(kept))


def test_two_that_count_alike_keep_the_same() -> None:
    steps = [0, 1, 4, 9, 17, 18, 22, 23, 30, 35, 41, 47, 60]
    one, other = spans.Thinning(), spans.Thinning()
    assert [each for each in steps if one.keeps(each)] == [each for each in steps if other.keeps(each)]
