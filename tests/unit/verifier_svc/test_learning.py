"""What a step teaches of costs and of trees."""

from __future__ import annotations

import math

import pytest

from paceline.engine.blocks import BlockAllocator
from paceline.sampling import SamplingParams
from paceline.session import SessionKey
from paceline.tree import TokenTree
from verifier_svc.budget import DraftBudget
from verifier_svc.cost import StepCost
from verifier_svc.learning import gained, learn
from verifier_svc.scheduler import Plan, StepLimits, plan
from verifier_svc.sessions import Session
from verifier_svc.waiting import Gained, TreeWait

LIMITS = StepLimits(block_size=8, prefill_rows=16, max_tree_nodes=4)
# Two nodes beside a root make a step half as long again.
COST = {1: 1.0, 3: 1.5, 16: 16.0, 32: 32.0}


class Told(TreeWait):
    """Notes what it is told."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[float] = []
        self.gains: list[Gained] = []

    def stepped(self, seconds: float) -> None:
        self.steps.append(seconds)
        super().stepped(seconds)

    def verified(self, session: Session, gained: Gained) -> None:
        self.gains.append(gained)
        super().verified(session, gained)


@pytest.fixture
def budget() -> DraftBudget:
    return DraftBudget(StepCost(COST, 0.0), draft_rows=16, max_nodes=4)


def _session(prompt: int, *, decoding: bool) -> Session:
    return Session(
        key=SessionKey(f"of {prompt}", 1),
        prompt_length=prompt,
        token_ids=[1] * (prompt + decoding),
        sampling=SamplingParams(max_tokens=9),
        length_limit=prompt + 9,
        num_computed=prompt if decoding else 0,
    )


def _planned(budget: DraftBudget, *sessions: Session, tree: TokenTree | None = None) -> Plan:
    allocator = BlockAllocator(20, LIMITS.block_size)
    for session in sessions:
        if session.num_computed:
            allocator.extend(session.blocks, 1)
        if tree is not None:
            session.drafting.came(tree, session.length, now=0.0)
    return plan(sessions, allocator, LIMITS, budget)


def _chain(*confidences: float) -> TokenTree:
    nodes = range(len(confidences))
    return TokenTree(tuple(nodes), tuple(node - 1 for node in nodes), tuple(math.log(p) for p in confidences))


def _learn(planned: Plan, accepted: int, seconds: float, budget: DraftBudget) -> Told:
    told = Told()
    drew = [(row, range(accepted)) for row in planned.rows if row.segment.wants_logits]
    learn(planned, drew, seconds, block_size=LIMITS.block_size, budget=budget, wait=told)
    return told


def test_what_a_tree_brought_is_less_what_its_rows_cost(budget: DraftBudget) -> None:
    planned = _planned(budget, _session(3, decoding=True), tree=_chain(0.9, 0.9))
    assert len(planned.rows[0].tree) == 2
    told = _learn(planned, 2, 1.5, budget)
    # Two nodes took the time of half a token; without them the step would have taken 1.
    (gained,) = told.gains
    assert gained.tokens == pytest.approx(1.5)
    assert gained.by_source == {0: pytest.approx(1.5)}
    assert told.steps == [pytest.approx(1.0)]


def test_a_tree_of_which_no_node_is_worth_its_row_brought_nothing(budget: DraftBudget) -> None:
    planned = _planned(budget, _session(3, decoding=True), tree=_chain(0.01))
    assert not planned.rows[0].tree
    assert _learn(planned, 0, 1.0, budget).gains == [Gained(0.0, {0: 0.0})]


def test_a_source_brought_what_the_others_would_have_missed(budget: DraftBudget) -> None:
    session = _session(3, decoding=True)
    text = TokenTree((1, 2), (-1, 0), (-0.01,) * 2, (0, 0))
    head = TokenTree((1, 2, 3), (-1, 0, 1), (-0.01,) * 3, (1, 1, 1))
    late = TokenTree((1, 1), (-1, 0), (-0.01,) * 2, (2, 2))
    session.drafting.came(text, 4, now=0.0)
    session.drafting.came(late, 3, now=0.0)
    budget.cost = StepCost({1: 1.0, 16: 1.0}, 0.0)
    planned = _planned(budget, session, tree=head)
    (row,) = planned.rows
    path, parent = [], -1
    for token in (1, 2, 3):
        parent = next(
            node
            for node, (other, above) in enumerate(zip(row.tree.tokens, row.tree.parents, strict=True))
            if (other, above) == (token, parent)
        )
        path.append(parent)
    # Without the head the walk would have ended behind the text's two; without the text it would not.
    assert gained(row, path, node_tokens=0.0) == Gained(3.0, {0: 0.0, 1: 1.0})
    assert gained(row, path[:1], node_tokens=0.1).by_source == {0: 0.0, 1: pytest.approx(-0.1)}


def test_what_is_left_of_an_earlier_tree_says_nothing_of_those_that_are_asked_for(
    budget: DraftBudget,
) -> None:
    session = _session(3, decoding=True)
    session.drafting.came(TokenTree((1, 2), (-1, 0), (-0.01,) * 2), 3, now=0.0)
    planned = _planned(budget, session)
    assert planned.rows[0].tree.tokens == (2,)
    assert not _learn(planned, 0, 1.0, budget).gains


def test_without_a_tree_nothing_is_learned_of_trees(budget: DraftBudget) -> None:
    assert not _learn(_planned(budget, _session(3, decoding=True)), 0, 1.0, budget).gains


def test_a_prompts_rows_refine_the_costs_but_not_how_long_steps_are(budget: DraftBudget) -> None:
    planned = _planned(budget, _session(3, decoding=True), _session(15, decoding=False))
    assert [len(row.segment.run) for row in planned.rows] == [1, 15]
    for _ in range(300):
        told = _learn(planned, 0, 8.0, budget)
    assert not told.steps
    assert budget.cost.seconds(16, 1) == pytest.approx(8.0, rel=0.01)
    assert budget.cost.seconds(1, 1) == pytest.approx(1.0, rel=0.2)


def test_the_blocks_before_a_prompts_rows_are_not_taken_for_its_rows_cost() -> None:
    budget = DraftBudget(StepCost(COST, 0.0, per_row_and_block=0.25), draft_rows=16, max_nodes=4)
    long = _session(31, decoding=False)
    long.num_computed = 16
    planned = _planned(budget, _session(3, decoding=True), long)
    prompt_rows = len(planned.rows[1].segment.run)
    for _ in range(300):
        # Each row reads two blocks of what is before it.
        _learn(planned, 0, 8.0 + 0.25 * 2 * prompt_rows, budget)
    assert budget.cost.seconds(1 + prompt_rows, 1) == pytest.approx(8.0, rel=0.01)
