"""Replayed answers: what is accepted of several methods' trees, merged as a verifier merges them."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest
import torch

from bench.drafting import DraftingMethods
from bench.judged import Judge
from bench.recording import TOP_K, Recording, Target
from bench.replay import Answers, simulate
from bench.states import hand_over
from drafter_svc.hypothesis import Hypothesis, Lesson
from drafter_svc.methods.base import Ask, Method
from paceline.sampling import SamplingParams
from paceline.session import SessionKey
from paceline.tree import TokenTree

PROMPT = (1, 2, 3)
RECORDINGS = [
    Recording("task", PROMPT, tuple(range(10 * each, 10 * each + 60)), ((0,),) * 60) for each in (1, 9)
]


class Scripted(Method):
    """Drafts chains that follow the recorded text, or random tokens."""

    name = "scripted"
    computes = False

    def __init__(self, length: int, *, right: bool, log_prob: float = -0.1) -> None:
        self._length, self._right, self._log_prob = length, right, log_prob
        self._random = random.Random(5)
        self.asked: list[int] = []

    def draft(self, asks: Sequence[Ask]) -> list[TokenTree]:
        return [self._tree(ask) for ask in asks]

    def _tree(self, ask: Ask) -> TokenTree:
        self.asked.append(ask.nodes)
        last = ask.session.ids[ask.length - 1]
        count = min(self._length, ask.nodes)
        if self._right:
            tokens = tuple(range(last + 1, last + 1 + count))
            parents = tuple(range(-1, count - 1))
        else:
            tokens = tuple(1000 + token for token in self._random.sample(range(900), count))
            parents = (-1,) * count
        return TokenTree(tokens, parents, (self._log_prob,) * count)

    def observe(self, session: Hypothesis, lesson: Lesson) -> None:
        """Learns nothing."""

    def settle(self) -> bool:
        """Puts nothing off."""
        return False

    def forget(self, session_id: str) -> None:
        """Keeps nothing."""


def length(*methods: Method, nodes: int = 8) -> float:
    def target() -> Target:
        raise AssertionError("no feedback was asked for")

    return simulate(DraftingMethods(methods, 0, ()), Answers(target, RECORDINGS), nodes, 16).length()


@pytest.mark.parametrize(("drafted", "committed"), [(0, 1.0), (1, 2.0), (3, 4.0)])
def test_steps_commit_what_is_accepted_and_one_token_more(drafted: int, committed: float) -> None:
    # Of 59 tokens the last step may get fewer.
    assert length(Scripted(drafted, right=True)) == pytest.approx(committed, rel=0.07)


class Noting:
    """Notes where was drafted."""

    def __init__(self) -> None:
        self.places: list[tuple[int, int]] = []

    def drafted(self, prompt: int, ids: Sequence[int], trees: Sequence[TokenTree]) -> None:
        """Every method has a tree."""
        assert len(trees) == 1
        self.places.append((prompt, len(ids)))


def test_a_witness_sees_a_draft_at_every_place_and_changes_no_step() -> None:
    def target() -> Target:
        raise AssertionError("no feedback was asked for")

    noting = Noting()
    drafting = DraftingMethods([Scripted(3, right=True)], 0, ())
    tally = simulate(drafting, Answers(target, RECORDINGS), 8, 16, witness=noting)
    assert tally.length() == length(Scripted(3, right=True))
    assert len(tally.method_seconds) == len(noting.places)
    ends = range(len(PROMPT) + 1, len(PROMPT) + 60)
    assert noting.places == [(prompt, end) for prompt in range(2) for end in ends]


class Learning(Scripted):
    """Notes which rows it is told of."""

    def __init__(self) -> None:
        super().__init__(3, right=True)
        self.told: list[tuple[int, ...]] = []

    def draft(self, asks: Sequence[Ask]) -> list[TokenTree]:
        """Nothing from the text's last id on: of what would follow nothing is recorded."""
        return [
            tree.select([node for node, token in enumerate(tree.tokens) if token < 69])
            for tree in super().draft(asks)
        ]

    def observe(self, session: Hypothesis, lesson: Lesson) -> None:
        self.told.append(tuple(row.position for row in lesson.rows))


def test_beside_a_witness_methods_learn_of_each_row_once() -> None:
    def target() -> Target:
        raise AssertionError("all rows are on the texts")

    texts = [Recording("task", PROMPT, tuple(range(10, 70)), (tuple(range(TOP_K)),) * 60)]
    told = []
    for witness in (None, Noting()):
        learning = Learning()
        simulate(DraftingMethods([learning], TOP_K, ()), Answers(target, texts), 8, 16, witness=witness)
        told.append([rows for rows in learning.told if rows])
    assert told[0] == told[1]
    assert len(told[0]) == 15


def test_of_two_methods_the_better_nodes_are_verified() -> None:
    """One is sure of tokens that never come, the other unsure of those that do."""
    alone = length(Scripted(3, right=True, log_prob=-1.5), nodes=3)
    assert length(
        Scripted(3, right=True, log_prob=-1.5), Scripted(3, right=False, log_prob=-0.01), nodes=3
    ) > (0.8 * alone)


def test_what_is_chosen_is_a_tree_within_its_size() -> None:
    judge = Judge()
    text = TokenTree((1, 2, 3), (-1, 0, 1), (-0.1,) * 3)
    head = TokenTree((1, 4), (-1, 0), (-0.5,) * 2)
    whole = judge.choose([text, head], 8)
    assert sorted(whole.tokens) == [1, 2, 3, 4]
    assert judge.choose([text, head], 2).tokens == (1, 2)
    judge.learn([0])
    assert judge.choose([], 8) == TokenTree()


class Reading(Method):
    """Takes hidden states in, and drafts nothing."""

    name = "reading"

    def __init__(self) -> None:
        self.attached = 0
        self.taken: list[int] = []

    def attach(self, session: Hypothesis) -> None:
        self.attached += 1
        self.taken = []

    def lacks_from(self, session: Hypothesis) -> int | None:
        return len(self.taken)

    def take_states(self, session: Hypothesis, position: int, states: memoryview) -> None:
        assert position == len(self.taken)
        numbers = torch.frombuffer(bytearray(states), dtype=torch.bfloat16).view(-1, 2, 3)
        self.taken += numbers[:, 0, 0].int().tolist()

    def draft(self, asks: Sequence[Ask]) -> list[TokenTree]:
        for ask in asks:
            assert len(self.taken) == ask.length - 1, "the last id has no states yet"
        return [TokenTree() for _ in asks]

    def forget(self, session_id: str) -> None:
        """Keeps nothing."""


def test_methods_get_the_states_of_all_positions_that_have_a_key_once() -> None:
    session = Hypothesis(SessionKey("s", 1), SamplingParams(max_tokens=9), range(1000, 1601))
    method, states = Reading(), torch.arange(700).bfloat16().view(-1, 1, 1).expand(700, 2, 3)
    hand_over([method], session, states)
    assert method.taken == torch.arange(600).bfloat16().int().tolist()
    session.ids += [7, 8]
    hand_over([method], session, states)
    assert method.taken == torch.arange(602).bfloat16().int().tolist()


def test_a_method_without_room_gets_no_states() -> None:
    class Full(Reading):
        def lacks_from(self, session: Hypothesis) -> int | None:
            return None

    session = Hypothesis(SessionKey("s", 1), SamplingParams(max_tokens=9), range(9))
    full = Full()
    hand_over([full], session, torch.zeros(20, 2, 3))
    assert full.taken == []
