"""Whom the verifier believes: every source by its own record, and where they meet by theirs together."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paceline.tree import TokenTree
from tests.unit.verifier_svc.test_merge import EAGLE, TEXT, part, trees
from verifier_svc.budget import PROBE_STEPS, DraftBudget
from verifier_svc.cost import StepCost
from verifier_svc.merge import MergedTree, merge
from verifier_svc.survival import DrafterRecord

STREAM = 1
BAD = 2


def chain(*confidences: float, source: int = TEXT, first: int = 0) -> TokenTree:
    count = len(confidences)
    return TokenTree(
        tuple(range(first, first + count)),
        tuple(range(-1, count - 1)),
        tuple(math.log(p) for p in confidences),
        (source,) * count,
    )


def one(tree: TokenTree) -> MergedTree:
    return merge([part(tree)])


def chances(record: DrafterRecord, merged: MergedTree) -> list[float]:
    return [math.exp(log_prob) for log_prob in record.judged(merged).log_probs]


def observe(record: DrafterRecord, merged: MergedTree, path: list[int]) -> None:
    record.observe(merged.nodes, merged.parents, path)


def test_before_anything_was_seen_a_source_is_believed() -> None:
    assert chances(DrafterRecord(), one(chain(0.9, 0.3))) == pytest.approx([0.9, 0.3])


def test_a_drafter_that_is_always_wrong_loses_its_word() -> None:
    record = DrafterRecord()
    for _ in range(50):
        observe(record, one(chain(0.9, 0.9)), [])
    first, second = chances(record, one(chain(0.9, 0.9)))
    assert first < 0.02
    # Nobody has seen a node of that depth, and it is the word of the same source.
    assert second < 0.2


def test_a_drafter_that_is_too_modest_is_believed_more() -> None:
    record = DrafterRecord()
    for _ in range(1000):
        observe(record, one(chain(0.2)), [0])
    assert chances(record, one(chain(0.2)))[0] > 0.9


def test_each_source_has_its_own_record() -> None:
    record = DrafterRecord()
    for _ in range(100):
        observe(record, one(chain(0.6, source=TEXT)), [0])
        observe(record, one(chain(0.6, source=EAGLE)), [])
    assert chances(record, one(chain(0.6, source=TEXT)))[0] > 0.9
    assert chances(record, one(chain(0.6, source=EAGLE)))[0] < 0.1


def test_what_two_sources_propose_is_likelier_than_what_one_does() -> None:
    agreed = merge([part(chain(0.5, source=TEXT)), part(chain(0.5, source=EAGLE))])
    assert chances(DrafterRecord(), agreed) == [pytest.approx(0.75)]


def test_sources_that_always_say_the_same_are_no_evidence_for_one_another() -> None:
    record = DrafterRecord()
    agreed = merge([part(chain(0.5, source=TEXT)), part(chain(0.5, source=EAGLE))])
    for turn in range(400):
        observe(record, agreed, [0] if turn % 2 else [])
    assert chances(record, agreed)[0] == pytest.approx(0.5, abs=0.05)


def test_where_sources_differ_the_better_one_is_known() -> None:
    """Each is right half of the time alone; where they differ, the head is."""
    record = DrafterRecord()
    differing = merge([part(chain(0.5, source=TEXT)), part(chain(0.5, source=EAGLE, first=9))])
    for turn in range(400):
        observe(record, one(chain(0.5, source=TEXT)), [0] if turn % 4 else [])
        observe(record, differing, [1] if turn % 2 else [])
    text, head = chances(record, differing)
    assert text < 0.1
    assert head == pytest.approx(0.5, abs=0.1)
    assert chances(record, one(chain(0.5, source=TEXT)))[0] > 0.4, "the text alone is still believed"


def test_combinations_that_a_drafter_invents_are_forgotten() -> None:
    """Of sixteen sources that agree and differ at random there are more than anybody can keep."""
    record, chosen = DrafterRecord(), random.Random(3)
    for _ in range(3000):
        sources = chosen.sample(range(16), chosen.randrange(1, 16))
        parts = [part(chain(chosen.random(), source=source, first=source % 2)) for source in sources]
        observe(record, merge(parts), [])
    assert record.kept <= 6000


def test_old_observations_fade() -> None:
    record = DrafterRecord()
    for _ in range(2000):
        observe(record, one(chain(0.5)), [])
    for _ in range(2000):
        observe(record, one(chain(0.5)), [0])
    assert chances(record, one(chain(0.5)))[0] > 0.9


seen = st.lists(st.tuples(trees(TEXT), trees(EAGLE), st.integers(-1, 7), st.booleans()), max_size=12)


@given(seen=seen, text=trees(TEXT), head=trees(EAGLE))
def test_judged_trees_hold_probabilities(
    seen: list[tuple[TokenTree, TokenTree, int, bool]], text: TokenTree, head: TokenTree
) -> None:
    """Whatever was observed: finite, at most 1, and siblings at most 1 together."""
    record = DrafterRecord()
    for one_tree, other, last, both in seen:
        merged = merge([part(one_tree), part(other)] if both else [part(one_tree)])
        path, node = list[int](), min(last, len(merged) - 1)
        while node >= 0:
            path.insert(0, node)
            node = merged.parents[node]
        observe(record, merged, path)
    merged = merge([part(text), part(head)])
    judged = record.judged(merged)
    assert (judged.tokens, judged.parents) == (merged.tokens, merged.parents)
    sums: dict[int, float] = {}
    for parent, log_prob in zip(judged.parents, judged.log_probs, strict=True):
        assert math.isfinite(log_prob)
        assert log_prob <= 0
        sums[parent] = sums.get(parent, 0.0) + math.exp(log_prob)
    assert all(total <= 1 + 1e-4 for total in sums.values())


class Step:
    """Steps of a session whose drafter has a source of random trees, sure of every node."""

    def __init__(self) -> None:
        self.budget = DraftBudget(StepCost({1: 1.0, 256: 1.0}, 0.0), draft_rows=64, max_nodes=31)
        self._random = random.Random(7)
        self.steps = 0

    def verify(self, right: Callable[[int], bool] = lambda token: False) -> tuple[int, int, float]:
        """Rows of the text and of the random source, and the tokens that the text's are worth.

        The text's tree is a chain of half sure nodes, of which the first is always right. `right`: tokens of
        the random source that are.
        """
        text = chain(0.5, 0.5, first=1000)
        tokens = self._random.sample(range(900), 16)
        parents = tuple(self._random.randrange(-1, index) if index else -1 for index in range(16))
        noise = TokenTree(tuple(tokens), parents, (0.0,) * 16, (BAD,) * 16)
        merged = merge([part(text), part(noise)])
        tree = self.budget.judged(STREAM, merged)
        worth = math.exp(tree.survivals()[0])
        (count,) = self.budget.allot([tree], blocks=1, probing=[self.steps % PROBE_STEPS == 0])
        kept = tree.best_nodes(count)
        verified = tree.select(kept)
        nodes = [merged.nodes[node] for node in kept]
        by_source = [node.proposals[0].source for node in nodes]
        path = [
            index
            for index, (token, parent) in enumerate(zip(verified.tokens, verified.parents, strict=True))
            if parent < 0 and (right(token) if any(map(right, verified.tokens)) else token == 1000)
        ][:1]
        self.budget.observe(STREAM, nodes, verified.parents, path)
        self.steps += 1
        return by_source.count(TEXT), by_source.count(BAD), worth


def test_a_bad_source_soon_takes_no_rows_and_hurts_nobody() -> None:
    step = Step()
    assert step.verify()[1] > 0, "nothing is known of it yet"
    while step.steps < 36:
        step.verify()
    for _ in range(4 * PROBE_STEPS):
        probing = step.steps % PROBE_STEPS == 0
        text, bad, worth = step.verify()
        assert text == 2
        assert bad == 0 or probing
        assert worth > 0.75, "the text's word is worth what it was without the other's"


def test_a_source_that_was_bad_is_believed_again_when_it_is_right() -> None:
    step = Step()
    for _ in range(300):
        step.verify()
    for _ in range(40 * PROBE_STEPS):
        step.verify(right=lambda token: token < 900)
    rows = [step.verify(right=lambda token: token < 900)[1] for _ in range(PROBE_STEPS)]
    assert all(rows)
