"""The target's own token: greedy ties, filters against definition and transformers, alone or not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from transformers import MinPLogitsWarper, TopKLogitsWarper, TopPLogitsWarper, TypicalLogitsWarper

from paceline import noise
from paceline.engine.logits import draw
from paceline.engine.logits.filters import kept_tokens
from paceline.engine.logits.session import LogitsRow, SessionLogits
from paceline.sampling import SamplingParams

# Few levels, so that equal logits are common.
COARSE = st.integers(-12, 12).map(lambda level: level / 4)


def _params(
    temperature: float = 1.0, *, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0, seed: int = 0
) -> SamplingParams:
    return SamplingParams(
        max_tokens=1, temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, seed=seed
    )


PARAMS = st.builds(
    _params,
    st.sampled_from([0.0, 0.3, 1.0, 2.0]),
    top_k=st.integers(0, 20),
    top_p=st.sampled_from([1.0, 0.95, 0.5, 0.1]),
    min_p=st.sampled_from([0.0, 0.05, 0.5]),
    seed=st.integers(0, 2**64 - 1),
)


def targets(
    logits: torch.Tensor,
    sampling: Sequence[SamplingParams],
    positions: Sequence[int],
    likeliest: NDArray[np.int64] | None = None,
) -> list[int]:
    """The token of each row, in a session of its own."""
    rows = [
        LogitsRow(SessionLogits(params), place) for params, place in zip(sampling, positions, strict=True)
    ]
    drawn = draw.targets(logits, rows, likeliest)
    assert not drawn.faults
    return drawn.tokens


def _kept_by_definition(scores: list[float], params: SamplingParams) -> list[int]:
    ranked = sorted(range(len(scores)), key=lambda token: (-scores[token], token))
    if 0 < params.top_k < len(ranked):
        ranked = ranked[: params.top_k]
    weights = [float(np.exp(scores[token] - scores[ranked[0]])) for token in ranked]
    if params.top_p < 1:
        total, before, count = sum(weights), 0.0, 0
        for weight in weights:
            if before >= params.top_p * total:
                break
            before += weight
            count += 1
        ranked, weights = ranked[:count], weights[:count]
    return sorted(token for token, weight in zip(ranked, weights, strict=True) if weight >= params.min_p)


def _near_a_threshold(scores: NDArray[np.float64], params: SamplingParams) -> bool:
    """Whether rounding alone could decide what is kept."""
    kept = np.sort(scores)[::-1]
    if 0 < params.top_k < len(kept):
        kept = kept[: params.top_k]
    shares = np.exp(kept - kept[0])
    cumulative = np.cumsum(shares) / shares.sum()
    near_top_p = params.top_p < 1 and np.abs(cumulative - params.top_p).min() < 1e-5
    near_min_p = params.min_p > 0 and np.abs(shares - params.min_p).min() < 1e-5
    return bool(near_top_p or near_min_p)


def test_greedy_takes_the_largest_and_the_lowest_id_of_equal_ones() -> None:
    logits = torch.tensor([[0.0, 3.0, 3.0, 1.0], [2.0, 2.0, 2.0, 2.0], [-1.0, -3.0, -2.0, -1.0]])
    assert targets(logits, [_params(0.0)] * 3, [0, 1, 2]) == [1, 0, 0]


@given(row=st.lists(COARSE, min_size=1, max_size=300))
def test_greedy_ties_in_any_row(row: list[float]) -> None:
    assert targets(torch.tensor([row]), [_params(0.0)], [0]) == [row.index(max(row))]


@given(data=st.data())
@settings(max_examples=50)
def test_a_row_depends_on_nothing_but_itself(data: st.DataObject) -> None:
    rows, vocab = data.draw(st.integers(1, 6)), data.draw(st.integers(1, 80))
    seed = data.draw(st.integers(0, 2**32))
    logits = torch.randn(rows, vocab, generator=torch.Generator().manual_seed(seed)) * 2
    sampling = data.draw(st.lists(PARAMS, min_size=rows, max_size=rows))
    positions = data.draw(st.lists(st.integers(0, 5000), min_size=rows, max_size=rows))
    alone = [targets(logits[r : r + 1], [sampling[r]], [positions[r]])[0] for r in range(rows)]
    assert targets(logits, sampling, positions) == alone
    order = data.draw(st.permutations(range(rows)))
    shuffled = targets(logits[order], [sampling[r] for r in order], [positions[r] for r in order])
    assert shuffled == [alone[r] for r in order]


@given(data=st.data())
@settings(max_examples=50)
def test_no_stop_id_is_drawn_before_its_position_and_nothing_else_changes(data: st.DataObject) -> None:
    """As if the vocabulary had none of them; from `stop_from` on as if it had never been set."""
    seed, position = data.draw(st.integers(0, 2**32)), data.draw(st.integers(0, 20))
    logits = torch.randn(1, 12, generator=torch.Generator().manual_seed(seed)) * 2
    params, stops = data.draw(PARAMS), data.draw(st.frozensets(st.integers(0, 11), min_size=1, max_size=4))
    held = replace(params, stop_token_ids=stops, stop_from=10)
    without = logits.clone()
    without[0, sorted(stops)] = -torch.inf
    expected = targets(without if position < 10 else logits, [params], [position])
    ranked = logits.argmax(dim=1).numpy()
    assert targets(logits, [held], [position], ranked) == expected
    if position < 10:
        assert expected[0] not in stops


@pytest.mark.parametrize("poison", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("params", [_params(0.0), _params(), _params(0.5, top_k=3, top_p=0.9, min_p=0.1)])
def test_broken_rows_are_answered_and_hurt_no_other(poison: float, params: SamplingParams) -> None:
    logits = torch.randn(3, 50, generator=torch.Generator().manual_seed(0))
    clean = targets(logits, [params] * 3, [5, 6, 7])
    broken = logits.clone()
    broken[1] = poison
    drawn = targets(broken, [params] * 3, [5, 6, 7])
    assert [drawn[0], drawn[2]] == [clean[0], clean[2]]
    assert 0 <= drawn[1] < 50


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_nan_counts_as_the_lowest_logit(temperature: float) -> None:
    logits = torch.tensor([[torch.nan, 1.0, torch.nan, 40.0]])
    for position in range(20):
        assert targets(logits, [_params(temperature, top_p=0.9)], [position]) == [3]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("top_p", [2.0**-126, 1e-20, 2.0**-54])
@pytest.mark.parametrize("top_k", [0, 1, 3])
def test_the_smallest_top_p_leaves_one_token_even_of_equals(top_p: float, top_k: int) -> None:
    params = SamplingParams(max_tokens=1, temperature=1.0, top_k=top_k, top_p=top_p)
    assert targets(torch.zeros(1, 8), [params], [0]) == [0]


def test_masked_tokens_are_never_drawn() -> None:
    logits = torch.full((1, 20), -torch.inf)
    logits[0, [4, 9]] = 0.0
    for params in (_params(), _params(top_k=5), _params(top_p=0.99), _params(min_p=0.01)):
        drawn = {targets(logits, [params], [position])[0] for position in range(40)}
        assert drawn == {4, 9}


@given(
    row=st.lists(COARSE, min_size=1, max_size=150),
    params=PARAMS.filter(lambda p: p.temperature > 0),
    position=st.integers(0, 9999),
)
def test_sampled_token_is_the_argmax_of_kept_scores_and_noise(
    row: list[float], params: SamplingParams, position: int
) -> None:
    scores = np.array(row) / params.temperature
    kept = _kept_by_definition(scores.tolist(), params)
    if _near_a_threshold(scores, params):
        kept_ids = kept_tokens(scores, params)
        kept = list(range(len(row))) if kept_ids is None else kept_ids.tolist()
    noisy = scores + noise.gumbel(params.seed, position, len(row))
    expected = max(kept, key=lambda token: noisy[token])
    assert targets(torch.tensor([row]), [params], [position]) == [expected]


@given(row=st.lists(COARSE, min_size=1, max_size=150), params=PARAMS)
@settings(max_examples=200)
def test_filters_against_their_definition(row: list[float], params: SamplingParams) -> None:
    scores = np.array(row)
    if _near_a_threshold(scores, params):
        return
    kept = kept_tokens(scores, params)
    assert (list(range(len(row))) if kept is None else kept.tolist()) == _kept_by_definition(row, params)


@pytest.mark.parametrize("spread", [0.1, 1.0, 4.0])
@pytest.mark.parametrize("params", [_params(top_p=0.95), _params(top_p=0.9, min_p=0.02), _params(top_k=900)])
def test_filters_at_a_real_vocabularys_size(spread: float, params: SamplingParams) -> None:
    # Rounded, so that hundreds of scores tie at every threshold.
    scores = np.random.default_rng(0).normal(size=20_000).round(2) * spread
    kept = kept_tokens(scores, params)
    assert kept is not None
    assert kept.tolist() == _kept_by_definition(scores.tolist(), params)


@pytest.mark.parametrize("spread", [0.1, 1.0, 4.0])
@pytest.mark.parametrize("mass", [0.01, 0.5, 0.999])
def test_typical_tokens_at_a_real_vocabularys_size(spread: float, mass: float) -> None:
    scores = np.random.default_rng(1).normal(size=20_000) * spread
    kept = kept_tokens(scores, SamplingParams(1, typical_p=mass))
    expected = TypicalLogitsWarper(mass)(torch.LongTensor([[0]]), torch.from_numpy(scores)[None])
    assert kept is not None
    assert kept.tolist() == expected[0].isfinite().nonzero().flatten().tolist()


@given(seed=st.integers(0, 2**32), params=PARAMS)
@settings(max_examples=100, deadline=None)
def test_filters_against_transformers(seed: int, params: SamplingParams) -> None:
    # No equal scores here: transformers keeps all that tie at the k-th place.
    scores = torch.randn(1, 120, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 2
    if _near_a_threshold(scores[0].numpy(), params):
        return
    ids = torch.LongTensor([[0]])
    processed = scores
    if params.top_k:
        processed = TopKLogitsWarper(params.top_k)(ids, processed)
    if params.top_p < 1:
        processed = TopPLogitsWarper(params.top_p)(ids, processed)
    if params.min_p > 0:
        processed = MinPLogitsWarper(params.min_p)(ids, processed)
    kept = kept_tokens(scores[0].numpy(), params)
    expected = processed[0].isfinite().nonzero().flatten().tolist()
    assert (list(range(120)) if kept is None else kept.tolist()) == expected
