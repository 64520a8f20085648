"""Log-probabilities: against torch's own, of a walk's tokens, and of a prompt's."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from paceline.engine.logits.session import SessionLogits
from paceline.engine.logprobs import logprobs_of
from paceline.engine.rows import Segment, build_batch
from paceline.engine.verify import decide
from paceline.logprobs import LOWEST, TokenLogprobs, pack, packed_width, unpack
from paceline.sampling import SamplingParams

VOCAB = 40


@given(
    st.integers(0, 2**32 - 1),
    st.integers(1, 5),
    st.integers(0, 8),
    st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_equal_torchs_own(seed: int, rows: int, top: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = (5 * torch.randn(rows, VOCAB, generator=generator)).to(dtype)
    tokens = torch.randint(VOCAB, (rows,), generator=generator).tolist()
    expected = torch.log_softmax(logits.double(), -1)
    for row, token, given_ in zip(expected, tokens, logprobs_of(logits, tokens, top), strict=True):
        assert given_.logprob == pytest.approx(float(row[token]), abs=1e-5)
        assert given_.rank == 1 + int((row > row[token]).sum())
        assert list(given_.top_logprobs) == sorted(given_.top_logprobs, reverse=True)
        best = torch.argsort(row, descending=True, stable=True)[:top].tolist()
        assert list(given_.top_ids) == best
        if given_.rank <= top and given_.rank == 1:
            assert given_.top_logprobs[0] == given_.logprob


@given(st.integers(0, 2**32 - 1))
def test_a_rows_bits_are_its_own(seed: int) -> None:
    logits = torch.randn(6, 3000, generator=torch.Generator().manual_seed(seed))
    tokens = [7, 6, 5, 4, 3, 2]
    together = logprobs_of(logits, tokens, 3)
    assert together == [logprobs_of(logits[row : row + 1], [tokens[row]], 3)[0] for row in range(6)]


def test_rows_that_are_no_distribution() -> None:
    logits = torch.zeros(4, VOCAB)
    logits[0, 3] = math.nan
    logits[1, 3] = math.inf
    logits[2, :] = -math.inf
    logits[3, :] = math.nan
    nan, infinite, empty, nothing = logprobs_of(logits, [3, 3, 3, 3], 2)
    assert nan.logprob == LOWEST
    assert nan.top_logprobs[0] == pytest.approx(-math.log(VOCAB - 1), abs=1e-6)
    assert (infinite.logprob, infinite.top_ids[0], infinite.top_logprobs) == (0.0, 3, (0.0, LOWEST))
    assert empty.logprob == nothing.logprob == pytest.approx(-math.log(VOCAB), abs=1e-6)


def test_of_the_tokens_that_a_walk_commits() -> None:
    # Below the root 1 and 2; below 2 then 3, which is not what the target says.
    segment = Segment(run=[0], start=4, blocks=(0,), tree_tokens=[1, 2, 3], tree_parents=[-1, -1, 1])
    other = Segment(run=[5, 6, 7], start=0, blocks=(1,), scored=range(2))
    batch = build_batch([other, segment], block_size=16, device=torch.device("cpu"))
    assert batch.logit_rows.tolist() == [0, 1, 2, 3, 4, 5, 6]
    assert [(placed.scored, placed.drawn) for placed in batch.segments] == [
        (slice(0, 2), slice(2, 3)),
        (slice(3, 3), slice(3, 7)),
    ]
    logits = torch.randn(7, VOCAB, generator=torch.Generator().manual_seed(1))
    logits[3, 2] = logits[5, 9] = 20.0
    greedy = SessionLogits(SamplingParams(max_tokens=9))
    silent, told = decide(batch, logits, [greedy] * 2, [None] * 2, [0, 0], [None, 2])
    assert silent.logprobs == ()
    assert (told.path, told.bonus) == ((1,), 9)
    assert told.logprobs == tuple(logprobs_of(logits[[3, 5]], [2, 9], 2))


def test_a_root_is_not_scored() -> None:
    with pytest.raises(ValueError, match="before its root"):
        Segment(run=[1, 2], start=0, blocks=(0,), scored=range(1, 2))
    assert Segment(run=[1, 2], start=0, blocks=(0,), scored=range(1, 2), wants_logits=False).scored


likely = st.lists(st.tuples(st.integers(0, 2**32 - 1), st.floats(-9999, 0, width=32)), min_size=3, max_size=3)


@given(st.lists(st.tuples(st.integers(1, 2**32 - 1), st.floats(-9999, 0, width=32), likely)))
def test_packing(tokens: list[tuple[int, float, list[tuple[int, float]]]]) -> None:
    made = [
        TokenLogprobs(logprob, rank, tuple(i for i, _ in top), tuple(p for _, p in top))
        for rank, logprob, top in tokens
    ]
    packed = pack(made)
    assert len(packed) == len(made) * packed_width(3)
    assert unpack(packed, 3) == made
    if made:
        with pytest.raises(ValueError, match="are not log-probabilities"):
            unpack(packed[:-1], 3)


def test_without_likeliest_tokens() -> None:
    made = logprobs_of(torch.zeros(2, VOCAB), [1, 2], 0)
    assert unpack(pack(made), 0) == made
    assert made[0].logprob == np.float32(-np.log(VOCAB))
