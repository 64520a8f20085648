"""Drafts, the target's tokens, and what is committed: greedy tables through the whole decision."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from paceline.engine.logits.session import SessionLogits
from paceline.engine.rows import RaggedBatch, Segment, build_batch
from paceline.engine.verify import decide
from paceline.sampling import SamplingParams

VOCAB = 50
GREEDY = SessionLogits(SamplingParams(max_tokens=9))


def _batch(*segments: Segment) -> RaggedBatch:
    return build_batch(segments, block_size=16, device=torch.device("cpu"))


def _saying(tokens: list[int]) -> torch.Tensor:
    logits = torch.zeros(len(tokens), VOCAB)
    logits[torch.arange(len(tokens)), torch.tensor(tokens)] = 9.0
    return logits


def _chain(draft: list[int], blocks: tuple[int, ...] = (0, 1)) -> Segment:
    return Segment(
        run=[0], start=3, blocks=blocks, tree_tokens=draft, tree_parents=list(range(-1, len(draft) - 1))
    )


# The draft, the target's token at the root and after each drafted one, and what is committed.
CHAINS = [
    ([1, 2, 3], [1, 2, 3, 4], [1, 2, 3, 4]),  # all right, with a bonus
    ([1, 2, 3], [1, 5, 3, 4], [1, 5]),  # wrong in the middle
    ([1, 2, 3], [5, 2, 3, 4], [5]),  # wrong at once: what would match later does not count
    ([1], [1, 2], [1, 2]),
    ([1], [0, 2], [0]),  # token 0 is a token like any other
    ([0, 0], [0, 0, 0], [0, 0, 0]),
    ([], [7], [7]),  # no draft
]


@pytest.mark.parametrize(("draft", "target", "expected"), CHAINS)
def test_chain(draft: list[int], target: list[int], expected: list[int]) -> None:
    (decision,) = decide(_batch(_chain(draft)), _saying(target), [GREEDY], [None], [0], [None])
    assert [*(draft[node] for node in decision.path), decision.bonus] == expected


def test_sessions_in_one_batch_do_not_meet() -> None:
    segments = [_chain(draft, (2 * place, 2 * place + 1)) for place, (draft, _, _) in enumerate(CHAINS)]
    silent = Segment(run=[1, 2], start=0, blocks=(40,), wants_logits=False)
    logits = _saying([token for _, target, _ in CHAINS for token in target])
    count = len(CHAINS)
    decisions = decide(
        _batch(silent, *segments), logits, [GREEDY] * count, [None] * count, [0] * count, [None] * count
    )
    for decision, (draft, _, expected) in zip(decisions, CHAINS, strict=True):
        assert [*(draft[node] for node in decision.path), decision.bonus] == expected


# 1 and 2 below the root, 3 and 4 below 1, 3 below 2.
TREE = ([1, 2, 3, 4, 3], [-1, -1, 0, 0, 1])


@pytest.mark.parametrize(
    ("target", "path", "bonus"),
    [
        ([1, 3, 0, 8, 9, 9], (0, 2), 8),
        ([1, 4, 0, 8, 9, 7], (0, 3), 9),
        ([2, 0, 3, 8, 9, 7], (1, 4), 7),
        ([2, 0, 4, 8, 9, 7], (1,), 4),  # 4 hangs below 1, not below 2
        ([3, 1, 1, 1, 1, 1], (), 3),  # 3 is drafted, but deeper
    ],
)
def test_tree(target: list[int], path: tuple[int, ...], bonus: int) -> None:
    tokens, parents = TREE
    segment = Segment(run=[0], start=0, blocks=(0,), tree_tokens=tokens, tree_parents=parents)
    (decision,) = decide(_batch(segment), _saying(target), [GREEDY], [None], [0], [None])
    assert (decision.path, decision.bonus) == (path, bonus)


def test_a_matcher_is_asked_for_each_row_that_the_walk_reaches_by_its_way_through_the_tree() -> None:
    asked: list[list[int]] = []

    class Free:
        def mask(self, path: Sequence[int]) -> NDArray[np.uint32]:
            asked.append(list(path))
            return np.full(2, 2**32 - 1, np.uint32)

    tokens, parents = TREE
    segment = Segment(run=[0], start=0, blocks=(0,), tree_tokens=tokens, tree_parents=parents)
    (decision,) = decide(_batch(segment), _saying([1, 4, 0, 8, 9, 7]), [GREEDY], [Free()], [0], [None])
    assert (decision.path, decision.bonus) == ((0, 3), 9)
    assert asked == [[], [1], [1, 4]]


def test_no_segment_wants_logits() -> None:
    batch = _batch(Segment(run=[1, 2], start=0, blocks=(0,), wants_logits=False))
    assert decide(batch, torch.zeros(0, VOCAB), [], [], [], []) == []


def test_each_session_gets_the_feedback_it_asked_for() -> None:
    logits = torch.arange(5 * VOCAB).view(5, VOCAB).remainder(VOCAB).float()
    batch = _batch(_chain([1], (0, 1)), _chain([2], (2, 3)), _chain([], (4,)))
    decisions = decide(batch, logits, [GREEDY] * 3, [None] * 3, [2, 0, 3], [None] * 3)
    assert [decision.top_k for decision in decisions] == [2, 0, 3]
    assert [decision.top_ids for decision in decisions] == [(49, 48, 49, 48), (), (49, 48, 47)]
