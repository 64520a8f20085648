"""A session's drafter: who joins anew, what it was asked for, and what is left of its trees behind a step."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paceline.sampling import SamplingParams
from paceline.session import SessionKey, SpeculationLimits
from paceline.tree import TokenTree
from verifier_svc.asks import ASKED_TREES, Answer, Asks
from verifier_svc.budget import DraftBudget
from verifier_svc.cost import StepCost
from verifier_svc.drafting import Drafting
from verifier_svc.readiness import ready
from verifier_svc.sessions import Session

# 10 -> 11 -> 12, and 20 beside 10 with 21 below.
TREE = TokenTree((10, 20, 11, 21, 12), (-1, -1, 0, 1, 2), (-0.1, -2.0, -0.1, -0.1, -0.1))


@pytest.fixture
def budget() -> DraftBudget:
    return DraftBudget(StepCost({1: 1.0, 256: 1.0}, 0.0), draft_rows=16, max_nodes=8)


def session(*committed: int, left: int = 9) -> Session:
    ids = [1, 2, 3, *committed]
    return Session(
        SessionKey("s", 1),
        3,
        ids,
        SamplingParams(max_tokens=50),
        len(ids) + left + 1,
        drafting=Drafting(stream_id=1),
    )


def came(made: Session, *, base: int = 4, tree: TokenTree = TREE) -> None:
    made.drafting.came(tree, base, now=0.0)


def test_without_a_tree_nothing_is_ready(budget: DraftBudget) -> None:
    there = ready(session(5), budget)
    assert (there.tree, there.fresh, there.late) == (TokenTree(), False, 0)


def test_a_tree_in_time_is_ready_whole(budget: DraftBudget) -> None:
    made = session(5)
    came(made)
    there = ready(made, budget)
    assert sorted(there.tree.tokens) == sorted(TREE.tokens)
    assert (there.fresh, there.in_time, there.late) == (True, frozenset({0}), 0)


def test_a_tree_that_no_longer_fits_is_late_once(budget: DraftBudget) -> None:
    made = session(5, 9)
    came(made)
    there = ready(made, budget)
    assert (there.tree, there.fresh, there.late) == (TokenTree(), False, 1)
    made.drafting.take(there.fitting)
    assert made.drafting.offers == ()
    assert ready(made, budget).late == 0


def test_a_late_tree_is_fresh_and_not_in_time(budget: DraftBudget) -> None:
    made = session(5, 10)
    came(made)
    there = ready(made, budget)
    assert there.tree.tokens == (11, 12)
    assert (there.fresh, there.in_time) == (True, frozenset())


def test_what_a_step_leaves_of_a_tree_may_fit_the_next_one(budget: DraftBudget) -> None:
    made = session(5)
    came(made)
    made.drafting.take(ready(made, budget).fitting)
    assert made.drafting.trees_offered == 0
    made.token_ids += [10, 11]
    there = ready(made, budget)
    assert there.tree.tokens == (12,)
    assert (there.fresh, there.late) == (False, 0), "it was there for the step before"
    made.token_ids.append(13)
    assert ready(made, budget).late == 0


def test_a_larger_tree_that_comes_while_the_step_runs_fits_the_next_one(budget: DraftBudget) -> None:
    """A drafter that goes on below what it sent: drafting ahead."""
    made = session(5)
    came(made, tree=TREE)
    made.drafting.take(ready(made, budget).fitting)
    ahead = TokenTree((10, 11, 12, 13, 14), (-1, 0, 1, 2, 3), (-0.1,) * 5)
    came(made, tree=ahead)
    # The step is done: its path and its own token lie within what was sent meanwhile.
    made.token_ids += [10, 11, 12]
    there = ready(made, budget)
    assert there.tree.tokens == (13, 14)
    assert there.fresh


@given(left=st.integers(0, 5))
def test_nodes_below_the_last_useful_depth_are_left_out(left: int) -> None:
    made = session(5, left=left)
    came(made)
    budget = DraftBudget(StepCost({1: 1.0, 256: 1.0}, 0.0), draft_rows=16, max_nodes=8)
    there = ready(made, budget)
    depths = TREE.depths()
    assert sorted(there.tree.tokens) == sorted(
        token for token, depth in zip(TREE.tokens, depths, strict=True) if depth <= left
    )
    assert len(there.merged) == len(there.tree)


def test_an_answer_is_timed_from_its_own_request_also_when_it_is_late() -> None:
    asks = Asks()
    asks.ask(4, now=10.0)
    asks.ask(5, now=11.0)
    assert asks.answered(4, [0], now=11.5) == [Answer(0, 1.5, 1.5)]
    assert asks.answered(5, [0], now=11.75) == [Answer(0, 0.75, 0.75)]
    assert asks.answered(5, [0], now=12.0) == [], "nobody asked for a second one"


def test_each_source_answers_for_itself() -> None:
    asks = Asks()
    asks.ask(4, now=10.0)
    assert asks.answered(4, [0], now=10.25) == [Answer(0, 0.25, 0.25)]
    # The head's tree brings the text's nodes once more.
    assert asks.answered(4, [0, 1], now=11.0) == [Answer(1, 1.0, 0.75)]


def test_only_the_last_requests_are_remembered() -> None:
    asks = Asks()
    for length in range(100):
        asks.ask(length, now=float(length))
    assert asks.answered(99 - ASKED_TREES, [0], now=100.0) == []
    assert asks.answered(100 - ASKED_TREES, [0], now=100.0) == [Answer(0, ASKED_TREES, ASKED_TREES)]


def test_a_source_that_stops_answering_is_expected_less_and_less() -> None:
    asks = Asks()
    for length in range(50):
        asks.ask(length, now=0.0)
        asks.answered(length, [0, 1] if length < 20 else [0], now=0.0)
    assert asks.rate(0) == 1.0
    assert asks.rate(1) < 0.05
    for length in range(50, 70):
        asks.ask(length, now=0.0)
        # Late, but it comes.
        asks.answered(length - 1, [0, 1], now=0.0)
    assert asks.rate(1) > 0.8


def test_another_drafters_trees_go_and_ones_own_stay() -> None:
    drafting = Drafting(stream_id=1)
    drafting.came(TREE, 4, now=0.0)
    drafting.join(1, 6)
    assert ([offer.tree for offer in drafting.offers], drafting.told_length) == ([TREE], 6)
    drafting.join(2, 7, ("text", "eagle"))
    assert (drafting.stream_id, drafting.offers, drafting.told_length) == (2, (), 7)
    assert drafting.sources == ("text", "eagle")


def test_without_a_drafter_nothing_is_awaited() -> None:
    drafting = Drafting(stream_id=1)
    drafting.came(TREE, 4, now=0.0)
    drafting.asks.ask(5, now=1.0)
    drafting.leave()
    assert (drafting.stream_id, drafting.offers, drafting.asks.on(5)) == (0, (), None)


@pytest.mark.parametrize(
    ("limits", "tokens"),
    [
        (SpeculationLimits(), {10, 20, 11, 21, 12}),
        (SpeculationLimits(max_depth=1), {10, 20}),
        (SpeculationLimits(max_nodes=2), {10, 11}),
        (SpeculationLimits(max_nodes=4, max_depth=2), {10, 20, 11, 21}),
        (SpeculationLimits(max_nodes=99, max_depth=99), {10, 20, 11, 21, 12}),
    ],
)
def test_no_more_is_ready_than_its_client_allows(
    budget: DraftBudget, limits: SpeculationLimits, tokens: set[int]
) -> None:
    made = session(5)
    made.limits = limits
    came(made)
    there = ready(made, budget)
    assert set(there.tree.tokens) == tokens
    assert len(there.merged.nodes) == len(there.tree)


@pytest.mark.parametrize(
    ("method", "tokens"), [("", {10, 11, 20}), ("one", {10, 11}), ("two", {20}), ("x", set())]
)
def test_only_nodes_of_the_method_that_its_client_names_are_ready(
    budget: DraftBudget, method: str, tokens: set[int]
) -> None:
    made = session(5)
    made.drafting = Drafting(method=method)
    made.drafting.join(1, made.length, ("one", "two"))
    tree = TokenTree((10, 20, 11), (-1, -1, 0), (-0.1, -0.2, -0.1), (0, 1, 0))
    came(made, tree=tree)
    assert set(ready(made, budget).tree.tokens) == tokens
