"""Children of drafted rows: with the target's logits, the target's own draw comes first."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from drafter_svc.neural.choice import Wish, choose
from paceline.engine.logits.draw import targets
from paceline.engine.logits.session import LogitsRow, SessionLogits
from paceline.sampling import SamplingParams

VOCAB = 40
PARAMS = st.builds(
    SamplingParams,
    max_tokens=st.just(9),
    temperature=st.sampled_from([0.0, 0.3, 1.0, 2.0]),
    top_k=st.integers(0, 20),
    top_p=st.sampled_from([1.0, 0.9, 0.3]),
    min_p=st.sampled_from([0.0, 0.1]),
    seed=st.integers(0, 2**64 - 1),
    stop_token_ids=st.frozensets(st.integers(0, VOCAB - 1), max_size=5),
    stop_from=st.integers(0, 8),
    typical_p=st.sampled_from([1.0, 0.5]),
    logit_bias=st.dictionaries(st.integers(0, VOCAB - 1), st.integers(-3, 3), max_size=4).map(
        lambda biases: tuple(sorted(biases.items()))
    ),
    allowed_token_ids=st.sampled_from([frozenset(), frozenset(range(1, VOCAB, 2))]),
    bad_words=st.sampled_from([(), ((5,), (7,))]),
)
WISHES = st.builds(
    Wish, PARAMS, st.integers(1, 6), st.lists(st.integers(0, 9), min_size=1, max_size=3).map(tuple)
)


def _logits(rows: int, seed: int) -> torch.Tensor:
    # Few levels, so that equal logits are common.
    return torch.randint(-8, 9, (rows, VOCAB), generator=torch.Generator().manual_seed(seed)) / 2


@given(wishes=st.lists(WISHES, min_size=1, max_size=4), seed=st.integers(0, 1000))
def test_the_first_child_is_the_draw_of_a_target_with_the_same_logits(wishes: list[Wish], seed: int) -> None:
    rows = [(wish.sampling, position) for wish in wishes for position in wish.positions]
    logits = _logits(len(rows), seed)
    drawn = targets(logits, [LogitsRow(SessionLogits(params), position) for params, position in rows]).tokens
    found = choose(logits, wishes)
    assert [int(row[0]) for candidates in found for row in candidates.ids] == drawn
    for wish, candidates in zip(wishes, found, strict=True):
        assert candidates.ids.shape == (len(wish.positions), wish.children)
        for ids, log_probs in zip(candidates.ids, candidates.log_probs, strict=True):
            real = log_probs[np.isfinite(log_probs)]
            assert len(real)
            assert (np.diff(real) <= 1e-6).all()
            assert np.exp(real).sum() <= 1 + 1e-5
            assert len({*ids[: len(real)].tolist()}) == len(real)


@given(wishes=st.lists(WISHES, min_size=2, max_size=4), seed=st.integers(0, 1000))
@settings(max_examples=50)
def test_a_session_gets_the_same_whatever_else_is_in_the_batch(wishes: list[Wish], seed: int) -> None:
    logits = _logits(sum(len(wish.positions) for wish in wishes), seed)
    row = 0
    for wish, together in zip(wishes, choose(logits, wishes), strict=True):
        [alone] = choose(logits[row : row + len(wish.positions)], [wish])
        row += len(wish.positions)
        assert np.array_equal(alone.ids, together.ids)
        assert alone.log_probs == pytest.approx(together.log_probs)


@given(wish=WISHES, seed=st.integers(0, 1000))
def test_a_vocabulary_of_some_tokens_draws_with_those_tokens_noise(wish: Wish, seed: int) -> None:
    """As a target does for which all others are impossible."""
    some = np.sort(np.random.default_rng(seed).choice(VOCAB, 12, replace=False))
    logits = _logits(len(wish.positions), seed)
    [found] = choose(logits[:, some], [wish], some)
    rest = torch.full_like(logits, -math.inf)
    rest[:, some] = logits[:, some]
    stops = wish.sampling.stop_token_ids
    if {*some.tolist()} <= stops:
        return
    [expected] = choose(rest, [wish])
    width = min(found.ids.shape[1], 12)
    real = np.isfinite(expected.log_probs[:, :width])
    assert np.array_equal(found.ids[:, :width][real], expected.ids[:, :width][real])
    assert found.log_probs[:, :width][real] == pytest.approx(expected.log_probs[:, :width][real], abs=1e-5)


def test_at_temperature_0_log_probabilities_are_the_models() -> None:
    logits = torch.tensor([[0.0, 2.0, 1.0, -math.inf]])
    [found] = choose(logits, [Wish(SamplingParams(max_tokens=1), 4, (5,))])
    expected = torch.log_softmax(logits[0], 0)
    assert found.ids[0, :3].tolist() == [1, 2, 0]
    assert found.log_probs[0, :3] == pytest.approx(expected[[1, 2, 0]].double().numpy())
    assert found.log_probs[0, 3] == -math.inf


def test_a_row_without_numbers_has_no_children() -> None:
    [found] = choose(torch.full((1, VOCAB), math.nan), [Wish(SamplingParams(max_tokens=1), 4, (5,))])
    assert not np.isfinite(found.log_probs).any()
