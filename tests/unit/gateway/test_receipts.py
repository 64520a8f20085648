"""Receipts as HTTP tells them: sums that fit one another, and vLLM's form to the letter."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from gateway.events import Chunk, Event, Finished, Started
from gateway.http import receipts
from gateway.stopwatch import Stopwatch
from paceline.session import DraftCosts, FinishReason, Receipt, add_depths

STEPS = st.lists(st.integers(1, 5).flatmap(lambda depth: st.tuples(st.just(depth), st.integers(0, depth))))


def receipt_of(steps: list[tuple[int, int]]) -> Receipt:
    """Of chains: each step's depth, and how much of it was accepted."""
    drafted = accepted = tuple[int, ...]()
    for depth, taken in steps:
        drafted, accepted = add_depths(drafted, (1,) * depth), add_depths(accepted, (1,) * taken)
    return Receipt(
        steps=len(steps),
        committed_tokens=sum(taken + 1 for _, taken in steps),
        drafted_tokens=sum(drafted),
        accepted_tokens=sum(accepted),
        drafted_steps=len(steps),
        accepted_by_depth=accepted,
        drafts=DraftCosts(drafted),
    )


@given(STEPS, STEPS)
def test_vllms_form_counts_steps_by_what_they_accepted(
    one: list[tuple[int, int]], other: list[tuple[int, int]]
) -> None:
    told = receipts.metrics([receipt_of(one), receipt_of(other)])["speculative_decoding"]
    steps = [*one, *other]
    deepest = max((depth for depth, _ in steps), default=0)
    assert told["num_spec_steps"] == len(steps)
    assert told["num_spec_tokens"] == deepest
    assert told["num_draft_tokens"] == sum(depth for depth, _ in steps)
    taken = [taken for _, taken in steps]
    assert told["num_accepted_draft_tokens"] == sum(taken)
    assert told["acceptance_histogram"] == [taken.count(count) for count in range(deepest + 1)]
    assert told["mean_acceptance_length"] == (1 + sum(taken) / len(steps) if steps else 1.0)


def test_the_block_has_both_counts_of_each_depth() -> None:
    told = receipts.block(receipt_of([(3, 2), (1, 0)]))
    assert told["depths"] == [
        {"drafted_tokens": 2, "accepted_tokens": 1},
        {"drafted_tokens": 1, "accepted_tokens": 1},
        {"drafted_tokens": 1, "accepted_tokens": 0},
    ]
    assert (told["steps"], told["acceptance_length"]) == (2, 2.0)


def test_depths_beyond_the_last_one_told_count_there() -> None:
    assert add_depths((1,) * 70, (1, 1)) == (2, 2, *(1,) * 61, 7)


def test_a_sessions_times_follow_one_another() -> None:
    now = 100.0
    watch = Stopwatch(lambda: now)
    end = Finished(FinishReason.LENGTH, Receipt())
    timed = None
    events: list[tuple[float, Event]] = [
        (102.0, Started("s", 1, 3)),
        (105.0, Chunk("a", 3, (1,), 0, True)),
        (109.0, Chunk("b", 4, (2,), 0, True)),
        (110.0, Chunk("", 5, (), 0, True)),
        (111.0, end),
    ]
    for now, event in events:  # noqa: B007 - the clock's
        timed = watch.timed(event)
    assert isinstance(timed, Finished)
    receipt = timed.receipt
    assert (receipt.queued_seconds, receipt.prefill_seconds, receipt.decode_seconds) == (2.0, 3.0, 4.0)
