"""A request's times: queue, prefill and decode follow one another."""

from __future__ import annotations

import pytest
from prometheus_client import REGISTRY

from gateway.events import Chunk, Event, Finished, Started
from gateway.request_timer import RequestTimer
from paceline.session import FinishReason, Receipt

COUNTS = {
    "queue": "paceline:request_queue_time_seconds",
    "prefill": "paceline:request_prefill_time_seconds",
    "decode": "paceline:request_decode_time_seconds",
    "first": "paceline:time_to_first_token_seconds",
    "inter": "paceline:inter_token_latency_seconds",
    "all": "paceline:e2e_request_latency_seconds",
}
END = Finished(FinishReason.LENGTH, Receipt())


def chunk(*token_ids: int) -> Chunk:
    return Chunk("", 0, token_ids, 0, durable=True)


def sums() -> dict[str, float]:
    return {key: REGISTRY.get_sample_value(f"{name}_sum") or 0.0 for key, name in COUNTS.items()}


def timed(*events: tuple[float, Event]) -> dict[str, float]:
    """What each histogram was told in all, of a request that comes at 100; events have their times."""
    now = 100.0
    before = sums()
    timer = RequestTimer(lambda: now)
    for now, event in events:  # noqa: B007 - the clock's
        timer.saw(event)
    return {key: after - before[key] for key, after in sums().items() if after != before[key]}


def test_the_parts_of_a_request_are_the_whole() -> None:
    found = timed(
        (102.0, Started("s", 1, 7)), (105.0, chunk(1)), (106.0, chunk(2, 3)), (109.0, chunk(4)), (109.0, END)
    )
    assert found == pytest.approx(
        {"queue": 2.0, "prefill": 3.0, "decode": 4.0, "first": 5.0, "inter": 0.5 + 3.0, "all": 9.0}
    )


def test_text_that_comes_without_tokens_is_no_token() -> None:
    assert timed((101.0, Started("s", 1, 7)), (103.0, chunk())) == pytest.approx({"queue": 1.0})


def test_a_session_that_ends_counts_under_why_it_ended() -> None:
    def ended() -> float:
        return REGISTRY.get_sample_value("paceline:request_success_total", {"finished_reason": "length"}) or 0

    before = ended()
    timed((101.0, Started("s", 1, 7)), (102.0, END))
    assert ended() == before + 1
