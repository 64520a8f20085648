"""How many nodes sessions may verify and draft, and when waiting for trees pays."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paceline.tree import TokenTree
from verifier_svc.budget import (
    LEAST_PROMPT_ROWS,
    MOST_STRETCH,
    PROBE_NODES,
    PROBE_STEPS,
    PROMPT_STRETCH,
    DraftBudget,
)
from verifier_svc.cost import EDGES, StepCost


def _chain(*confidences: float) -> TokenTree:
    nodes = range(len(confidences))
    return TokenTree(tuple(nodes), tuple(node - 1 for node in nodes), tuple(math.log(p) for p in confidences))


def _budget(cost: StepCost, draft_rows: int = 256) -> DraftBudget:
    return DraftBudget(cost, draft_rows=draft_rows, max_nodes=32)


FLAT = StepCost({1: 1.0, 256: 1.0}, 0.0)
# Every row costs as much as the first.
LINEAR = StepCost({edge: float(edge) for edge in range(1, 65)}, 0.0)


def test_where_rows_are_free_all_nodes_are_verified() -> None:
    assert _budget(FLAT).allot([_chain(0.5, 0.5), _chain(0.1), TokenTree()], blocks=3) == [2, 1, 0]


def test_where_every_row_costs_a_step_none_is() -> None:
    assert _budget(LINEAR).allot([_chain(0.99, 0.99), _chain(0.9)], blocks=2) == [0, 0]


def test_what_is_next_to_impossible_takes_no_row_unless_it_is_probed() -> None:
    impossible = [_chain(1e-4), _chain(0.9, 1e-4)]
    assert _budget(FLAT).allot(impossible, blocks=2) == [0, 1]
    assert _budget(FLAT).allot(impossible, blocks=2, probing=[True, False]) == [1, 1]


def test_the_best_nodes_of_all_sessions_come_first() -> None:
    # Room for two nodes beside two roots; a third would be a step twice as long.
    cost = StepCost({2: 1.0, 4: 1.1, 64: 2.2}, 0.0)
    assert _budget(cost).allot([_chain(0.9, 0.9, 0.9), _chain(0.3)], blocks=2) == [2, 0]
    assert _budget(cost).allot([_chain(0.9, 0.1), _chain(0.3)], blocks=2) == [1, 1]


def test_long_contexts_make_rows_cheap_beside_them() -> None:
    cost = StepCost({edge: float(edge) for edge in (1, 2)}, 1.0)
    assert _budget(cost).allot([_chain(0.5)], blocks=1) == [0]
    assert _budget(cost).allot([_chain(0.5)], blocks=50) == [1]


@given(data=st.data())
def test_an_allotment_never_lowers_the_expected_goodput(data: st.DataObject) -> None:
    rows = sorted(data.draw(st.sets(st.integers(1, 100), min_size=1, max_size=8)))
    cost = StepCost({edge: data.draw(st.floats(0.01, 10)) for edge in rows}, data.draw(st.floats(0, 1)))
    chains = st.lists(st.floats(0.01, 1), max_size=8).map(lambda edges: _chain(*edges))
    trees = data.draw(st.lists(chains, min_size=1, max_size=6))
    draft_rows = data.draw(st.integers(0, 40))
    counts = _budget(cost, draft_rows).allot(trees, blocks=len(trees))
    assert all(0 <= count <= len(tree) for count, tree in zip(counts, trees, strict=True))
    assert sum(counts) <= max(0, draft_rows - len(trees))
    taken = [math.exp(s) for count, tree in zip(counts, trees, strict=True) for s in tree.survivals()[:count]]
    plain = len(trees) / cost.seconds(len(trees), len(trees))
    drafted = (len(trees) + sum(taken)) / cost.seconds(len(trees) + len(taken), len(trees))
    assert drafted >= plain * (1 - 1e-9)


def test_a_fifth_of_the_gain_buys_wider_trees() -> None:
    tree = _chain(0.9, 0.5, 0.4, 0.4)
    # Verifying one node gains 0.9 of a token a step; all four, 1.6 tokens in a step that is a bit too long.
    near, far = StepCost({1: 1.0, 2: 1.0, 5: 1.42}, 0.0), StepCost({1: 1.0, 2: 1.0, 5: 1.6}, 0.0)
    assert _budget(near).allot([tree], blocks=1) == [4]
    assert _budget(far).allot([tree], blocks=1) == [1]


def test_under_saturation_a_session_drafts_now_and_then_and_recovers() -> None:
    budget = _budget(LINEAR)
    assert budget.ask(8, blocks=8) == 0
    asked = [budget.probe(step, sessions=8) for step in range(2 * PROBE_STEPS)]
    assert asked.count(0) == 2 * PROBE_STEPS - 2
    assert asked[0] == asked[PROBE_STEPS] == PROBE_NODES
    # A single session has the machine to itself.
    assert [budget.probe(step, sessions=1) for step in range(4)] == [PROBE_NODES, 0, PROBE_NODES, 0]
    budget.cost = FLAT
    assert budget.ask(8, blocks=8) == 32


@pytest.mark.parametrize("remnant", [False, True])
def test_poor_remnants_of_trees_do_not_stop_what_whole_trees_pay_for(remnant: bool) -> None:
    budget = _budget(StepCost({edge: 1.0 + edge / 8 for edge in range(1, 65)}, 0.0))
    for _ in range(100):
        budget.allot([_chain(0.9, 0.9, 0.9, 0.9)], blocks=1)
    asked = budget.ask(1, blocks=1)
    assert asked > 2
    for _ in range(100):
        budget.allot([_chain(0.05)], blocks=1, remnant=[remnant])
    assert (budget.ask(1, blocks=1) == asked) == remnant


def test_a_prompt_stretches_a_step_only_so_far() -> None:
    cost = StepCost({8: 1.0, 64: 2.0, 128: 3.0, 256: 6.0}, 0.0, 0.01)
    budget = _budget(cost)
    assert budget.prompt_rows(0, blocks=0, prompts=1, prompt_blocks=30, most=256) == 256
    alone = budget.prompt_rows(8, blocks=8, prompts=1, prompt_blocks=0, most=256)
    assert 8 + alone <= 64
    assert cost.prompt_seconds(8, 8, prompt_rows=alone, prompt_blocks=0) <= PROMPT_STRETCH
    # Attention over what lies before the prompt's rows counts as well, but a prompt always gets on.
    assert budget.prompt_rows(8, blocks=8, prompts=1, prompt_blocks=2, most=256) < alone
    assert budget.prompt_rows(8, blocks=8, prompts=1, prompt_blocks=1000, most=256) == LEAST_PROMPT_ROWS
    assert budget.prompt_rows(8, blocks=8, prompts=1, prompt_blocks=0, most=8) == 8


def test_many_prompts_get_more_of_the_time_than_few_that_decode() -> None:
    cost = StepCost({edge: 1.0 + edge / 8 for edge in EDGES}, 0.0)
    budget = _budget(cost)

    def seconds(sessions: int, prompts: int) -> float:
        rows = budget.prompt_rows(sessions, blocks=sessions, prompts=prompts, prompt_blocks=0, most=256)
        return cost.prompt_seconds(sessions, sessions, prompt_rows=rows, prompt_blocks=0)

    plain = cost.seconds(8, 8)
    assert seconds(8, 1) <= seconds(8, 8) <= PROMPT_STRETCH * plain
    assert PROMPT_STRETCH * plain < seconds(8, 20) <= 3.5 * plain
    assert seconds(8, 1000) <= MOST_STRETCH * plain


def test_what_drafts_gain_goes_to_prompts_where_more_than_one_waits() -> None:
    cost = StepCost({edge: 4.0 + edge / 8 for edge in range(4, 257, 4)}, 0.0)
    budget = _budget(cost)
    # The first's other nodes are not worth their rows, so nothing is expected of them.
    weak = TokenTree(tuple(range(34)), (-1, 0, *[-1] * 32), tuple(map(math.log, (0.7, 0.7, *[0.06] * 32))))
    trees = [weak, *[_chain(0.7, 0.7)] * 3]
    nodes = sum(budget.allot(trees, blocks=4))
    assert nodes == 8
    drafted, plain, tokens = cost.seconds(4 + nodes, 4), cost.seconds(4, 4), 1 + 0.7 + 0.49
    assert PROMPT_STRETCH * drafted < PROMPT_STRETCH * tokens * plain < MOST_STRETCH * drafted

    def longest(limit: float, prompts: int) -> bool:
        """Whether the prompts' rows are as many as a step within `limit` seconds may have."""
        rows = budget.prompt_rows(4, blocks=4, prompts=prompts, prompt_blocks=0, most=256)
        seconds, more = (
            cost.prompt_seconds(4 + nodes, 4, prompt_rows=each, prompt_blocks=0)
            for each in (rows, rows + LEAST_PROMPT_ROWS)
        )
        return seconds <= limit < more

    assert longest(PROMPT_STRETCH * drafted, prompts=1)
    # No token takes longer than it would without drafts, beside prompts.
    assert longest(PROMPT_STRETCH * tokens * plain, prompts=2)
    assert longest(MOST_STRETCH * drafted, prompts=1000)
    # A step without drafts has nothing to give away.
    budget.allot([TokenTree()] * 4, blocks=4)
    assert budget.prompt_rows(4, blocks=4, prompts=2, prompt_blocks=0, most=256) == budget.prompt_rows(
        4, blocks=4, prompts=1, prompt_blocks=0, most=256
    )


def test_more_prompts_never_get_less_of_a_step() -> None:
    """Not even when most of the sessions that drafted in the last step have ended."""
    budget = _budget(StepCost({edge: 4.0 + edge / 8 for edge in range(1, 257)}, 0.0))
    assert sum(budget.allot([_chain(0.7)] * 32, blocks=32)) == 32
    one, two = (
        budget.prompt_rows(2, blocks=2, prompts=prompts, prompt_blocks=0, most=256) for prompts in (1, 2)
    )
    assert one <= two


def test_rows_of_a_prompt_are_cheaper_for_they_want_no_logits() -> None:
    cost = StepCost({edge: float(edge) for edge in EDGES}, 0.0, 0.0, 0.25)
    assert cost.prompt_seconds(8, 1, prompt_rows=56, prompt_blocks=0) == pytest.approx(64 - 14)
    # Whatever was measured, a step is not shorter for them.
    assert StepCost({1: 1.0, 256: 1.0}, 0.0, 0.0, 9.0).prompt_seconds(
        1, 1, prompt_rows=50, prompt_blocks=0
    ) == pytest.approx(1.0)


def test_costs_are_learned_beside_prompts_too() -> None:
    """Under load a prompt is in nearly every step."""
    cost = StepCost({8: 1.0, 32: 2.0, 64: 3.0}, 0.0, 0.01, 0.02)
    for _ in range(300):
        cost.observe(8, 1, 4.0 + 0.01 * 24 * 10 - 0.02 * 24, prompt_rows=24, row_blocks=24 * 10)
    assert cost.seconds(32, 1) == pytest.approx(4.0, rel=0.01)
    assert cost.seconds(8, 1) == pytest.approx(1.0, rel=0.2)


def test_a_prompt_goes_beside_drafts_and_not_in_their_place() -> None:
    """Were the others taken not to draft, speculation would be what a prompt's rows are paid with."""
    cost = StepCost({1: 1.0, 32: 2.0, 64: 2.0, 128: 4.0, 256: 8.0}, 0.0, 0.0)
    budget = _budget(cost)
    plain = budget.prompt_rows(1, blocks=1, prompts=1, prompt_blocks=0, most=256)
    sure = TokenTree(tuple(range(24)), tuple(range(-1, 23)), (-0.01,) * 24)
    assert sum(budget.allot([sure], blocks=1)) == 24
    assert budget.prompt_rows(1, blocks=1, prompts=1, prompt_blocks=0, most=256) > plain
    budget.allot([TokenTree()], blocks=1)
    assert budget.prompt_rows(1, blocks=1, prompts=1, prompt_blocks=0, most=256) == plain


@given(rows=st.dictionaries(st.integers(1, 64), st.floats(0.001, 9), min_size=1), per_block=st.floats(0, 1))
def test_a_wider_step_never_counts_as_cheaper(rows: dict[int, float], per_block: float) -> None:
    cost = StepCost(rows, per_block)
    costs = [cost.seconds(count, 3) for count in range(1, 100)]
    assert costs == sorted(costs)


def test_costs_follow_what_steps_take_but_not_one_stall() -> None:
    cost = StepCost({1: 1.0, 8: 2.0}, 0.0)
    cost.observe(5, 1, 1000.0)
    assert cost.seconds(8, 1) < 2.3
    for _ in range(200):
        cost.observe(5, 1, 3.0)
    assert cost.seconds(8, 1) == pytest.approx(3.0, rel=0.01)
    assert cost.seconds(1, 1) == pytest.approx(1.0, rel=0.2)


def test_a_stall_says_less_of_a_width_that_is_well_known() -> None:
    cost = StepCost({1: 1.0, 8: 2.0}, 0.0)
    for _ in range(400):
        cost.observe(8, 1, 2.0)
    cost.observe(8, 1, 1000.0)
    assert cost.seconds(8, 1) < 2.12


def test_a_slower_machine_is_slower_for_widths_that_are_not_taken_too() -> None:
    """Were it only for those that are, the others would look cheap, and later, at full speed again, dear."""
    cost = StepCost({1: 1.0, 8: 2.0, 16: 3.0}, 0.0)
    for _ in range(200):
        cost.observe(8, 1, 2.0)
    for _ in range(200):
        cost.observe(8, 1, 4.0)
    assert [cost.seconds(rows, 1) for rows in (1, 8, 16)] == pytest.approx([2.0, 4.0, 6.0], rel=0.2)
    for _ in range(200):
        cost.observe(8, 1, 2.0)
    assert [cost.seconds(rows, 1) for rows in (1, 8, 16)] == pytest.approx([1.0, 2.0, 3.0], rel=0.01)


def test_a_width_that_was_timed_wrongly_is_soon_known_and_says_little_of_others() -> None:
    cost = StepCost({1: 1.0, 8: 2.0, 64: 10.0}, 0.0)
    for _ in range(40):
        cost.observe(64, 1, 6.0)
    assert cost.seconds(64, 1) == pytest.approx(6.0, rel=0.05)
    assert [cost.seconds(rows, 1) for rows in (1, 8)] == pytest.approx([1.0, 2.0], rel=0.1)


def test_noise_makes_no_width_dearer_that_is_not_taken() -> None:
    cost = StepCost({1: 1.0, 8: 2.0, 16: 3.0}, 0.0)
    for _ in range(20_000):
        cost.observe(8, 1, 1.4)
        cost.observe(8, 1, 2.8)
    ratio = cost.seconds(16, 1) / cost.seconds(8, 1)
    assert ratio == pytest.approx(1.5, rel=0.05)


def test_widths_that_are_taken_are_told_apart() -> None:
    cost = StepCost({1: 1.0, 8: 2.0, 16: 3.0}, 0.0)
    for _ in range(600):
        cost.observe(1, 1, 2.0)
        cost.observe(8, 1, 2.5)
    assert cost.seconds(1, 1) == pytest.approx(2.0, rel=0.03)
    assert cost.seconds(8, 1) == pytest.approx(2.5, rel=0.03)


def test_a_step_never_becomes_free_however_dear_its_blocks_are_taken_to_be() -> None:
    cost = StepCost({1: 1.0, 8: 2.0}, 0.5)
    for _ in range(20_000):
        cost.observe(1, 100, 3.0)
    assert cost.seconds(1, 1) >= 0.2
    assert DraftBudget(cost, draft_rows=8, max_nodes=8).plain_share(1, 7, blocks=1) <= 1.0


def _true_seconds(rows: int) -> float:
    edge = next(edge for edge in EDGES if rows <= edge)
    return 0.03 + 0.0004 * edge


def _take_steps(cost: StepCost, widths: Sequence[int], steps: int, random: Random) -> None:
    """Steps that vary by a tenth; one in ten is disturbed, and takes twice as long."""
    for step in range(steps):
        rows = widths[step % len(widths)]
        disturbed = 2.0 if random.random() < 0.1 else 1.0
        cost.observe(rows, 1, _true_seconds(rows) * random.lognormvariate(0.0, 0.1) * disturbed)


BESIDE_ANOTHER = {
    "all widths alike": lambda edge, random: 3.0,
    "narrow ones most": lambda edge, random: 5.0 if edge <= 8 else 1.5,
    "wide ones most": lambda edge, random: 1.2 if edge <= 8 else 3.0,
    "each by itself": lambda edge, random: random.uniform(1.0, 4.0),
}


@pytest.mark.parametrize("slower", BESIDE_ANOTHER.values(), ids=BESIDE_ANOTHER)
@pytest.mark.parametrize("seed", range(5))
def test_costs_measured_while_another_process_started_are_right_after_fifty_steps(
    slower: Callable[[int, Random], float], seed: int
) -> None:
    random = Random(seed)
    measured = {edge: _true_seconds(edge) * slower(edge, random) for edge in EDGES}
    # As at the start: fewer rows never take longer.
    cost = StepCost({edge: min(measured[wide] for wide in EDGES if wide >= edge) for edge in EDGES}, 0.0)
    # Without a tree, with small ones and with whole ones.
    widths = (1, 32, 12, 32, 4, 32, 24, 16)
    _take_steps(cost, widths, 50, random)
    for rows in widths:
        assert cost.seconds(rows, 1) == pytest.approx(_true_seconds(rows), rel=0.25)
    share = cost.seconds(32, 1) / cost.seconds(1, 1)
    assert share == pytest.approx(_true_seconds(32) / _true_seconds(1), rel=0.2)


def test_costs_that_are_known_stay_where_they_are_whatever_single_steps_take() -> None:
    random = Random(7)
    cost = StepCost({edge: _true_seconds(edge) for edge in EDGES}, 0.0)
    _take_steps(cost, (1, 32, 12), 300, random)
    # A tenth of the steps takes twice as long: the mean of the logarithms is this much higher.
    mean = 2.0**0.1
    for _ in range(300):
        _take_steps(cost, (1, 32, 12), 3, random)
        assert cost.seconds(32, 1) == pytest.approx(mean * _true_seconds(32), rel=0.25)
        share = cost.seconds(32, 1) / cost.seconds(1, 1)
        assert share == pytest.approx(_true_seconds(32) / _true_seconds(1), rel=0.1)


def test_a_narrow_width_that_was_timed_wrongly_makes_no_wider_one_dear() -> None:
    """Wider ones never count as cheaper: those that are taken say that it cannot be so."""
    cost = StepCost({1: 2.0, 8: 2.1, 16: 2.2}, 0.0)
    for _ in range(50):
        cost.observe(8, 1, 1.0)
        cost.observe(16, 1, 1.1)
    assert cost.seconds(1, 1) <= 1.1
    assert cost.seconds(16, 1) == pytest.approx(1.1, rel=0.05)


def test_what_a_node_costs_is_counted_in_tokens_of_all_sessions() -> None:
    budget = _budget(StepCost({1: 1.0, 2: 1.0, 3: 1.5, 4: 1.5}, 0.0))
    # Half a step more for two nodes: half a step yields half a token of each session.
    assert budget.node_tokens(1, 2, blocks=1) == pytest.approx(0.25)
    assert budget.node_tokens(2, 2, blocks=2) == pytest.approx(0.5)
    assert budget.node_tokens(2, 0, blocks=2) == 0.0
