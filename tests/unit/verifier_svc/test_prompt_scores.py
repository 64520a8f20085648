"""A prompt's log-probabilities, whatever chunks it is computed in and however often it loses its KV."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from paceline.engine.blocks import BlockAllocator
from paceline.logprobs import LogprobsWanted, TokenLogprobs
from paceline.sampling import SamplingParams
from paceline.session import SessionKey
from verifier_svc.budget import DraftBudget
from verifier_svc.cost import StepCost
from verifier_svc.prompt_scores import SCORED_ROWS, PromptScores
from verifier_svc.scheduler import StepLimits, plan
from verifier_svc.sessions import Session

LIMITS = StepLimits(block_size=8, prefill_rows=200, max_tree_nodes=4)


def score_of(token: int) -> TokenLogprobs:
    return TokenLogprobs(-float(token), token)


def a_session(ids: list[int], committed: int) -> Session:
    return Session(
        key=SessionKey("s", 1),
        prompt_length=len(ids) - committed,
        token_ids=ids,
        sampling=SamplingParams(max_tokens=committed + 5),
        length_limit=len(ids) + 5,
        opened_length=len(ids),
        logprobs=LogprobsWanted(prompt_top=0),
        prompt_scores=PromptScores(0, len(ids) - committed - 1),
    )


@given(st.integers(1, 300), st.integers(0, 20), st.lists(st.integers(0, 4), max_size=6), st.booleans())
def test_all_of_a_prompt_is_scored_once(
    prompt: int, committed: int, lost_after: list[int], kept: bool
) -> None:
    budget = DraftBudget(StepCost({1: 1.0, 256: 1.0}, 0.0), draft_rows=8, max_nodes=4)
    allocator = BlockAllocator(64, LIMITS.block_size)
    ids = list(range(prompt + committed))
    if kept:
        # Another session's KV of the same text: of no use before the prompt is scored.
        other: list[int] = []
        allocator.extend(other, -(-len(ids) // LIMITS.block_size))
        allocator.keep(other, ids, len(ids))
        allocator.release(other)
    session = a_session(ids, committed)
    scores = session.prompt_scores
    assert scores is not None
    rows_of: list[int] = []
    losses = list(lost_after)
    for _ in range(60):
        (row,) = plan([session], allocator, LIMITS, budget).rows
        segment = row.segment
        scored = [segment.start + index for index in segment.scored]
        if scored:
            assert len(segment.run) <= SCORED_ROWS
            scores.take(scored[0], [score_of(ids[position + 1]) for position in scored])
            # A step that failed is computed again.
            scores.take(scored[0], [score_of(ids[position + 1]) for position in scored])
            rows_of += scored
        session.num_computed = segment.root_index + 1
        if segment.wants_logits:
            break
        if losses and not losses.pop(0):
            allocator.release(session.blocks)
            session.num_computed = 0
    else:
        raise AssertionError("it does not get on")
    assert scores.complete
    assert scores.known == [score_of(token) for token in ids[1:prompt]]
    assert rows_of == list(range(prompt - 1))


def test_who_asks_for_none_begins_with_others_kv() -> None:
    budget = DraftBudget(StepCost({1: 1.0, 256: 1.0}, 0.0), draft_rows=8, max_nodes=4)
    allocator = BlockAllocator(64, LIMITS.block_size)
    ids = list(range(100))
    other: list[int] = []
    allocator.extend(other, 13)
    allocator.keep(other, ids, 96)
    asking = a_session(ids, 0)
    plain = replace(asking, key=SessionKey("t", 1), blocks=[], prompt_scores=None)
    planned = plan([plain, asking], allocator, LIMITS, budget)
    assert [row.segment.start for row in planned.rows] == [96, 0]
    assert planned.found_tokens == 96
