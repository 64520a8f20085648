"""The likeliest ids: highest first, the lowest id first among equals, NaN last."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from paceline.engine.ranking import highest

NUMBERS = st.sampled_from([0.0, -0.0, 1.0, -1.5, 3.0, 100.0, math.inf, -math.inf, math.nan])


@given(data=st.data())
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_equals_sorting_by_value_then_id(dtype: torch.dtype, data: st.DataObject) -> None:
    vocab = data.draw(st.integers(1, 70))
    rows = data.draw(st.lists(st.lists(NUMBERS, min_size=vocab, max_size=vocab), min_size=1, max_size=4))
    count = data.draw(st.integers(1, 9))

    def ranked(row: list[float]) -> list[int]:
        values = [-math.inf if math.isnan(number) else number for number in row]
        return sorted(range(vocab), key=lambda token: (-values[token], token))[:count]

    got = highest(torch.tensor(rows, dtype=dtype), count)
    assert got.tolist() == [ranked(row) for row in rows]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_equals_topk_over_a_whole_vocabulary(dtype: torch.dtype) -> None:
    logits = torch.randn(19, 49153, generator=torch.Generator().manual_seed(1)).to(dtype)
    values = logits.gather(1, torch.from_numpy(highest(logits, 8)))
    assert torch.equal(values, logits.topk(8, dim=-1).values)


def test_other_types_are_left_to_torch() -> None:
    logits = torch.tensor([[1.0, math.nan, 3.0, 3.0], [math.nan] * 4], dtype=torch.float64)
    assert highest(logits, 1).tolist() == [[2], [0]]
    assert highest(logits, 9).shape == (2, 4)
