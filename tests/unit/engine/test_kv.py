"""The KV pool: where slots lie, what compaction moves."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from paceline.engine.blocks import BlockTask
from paceline.engine.kv import KVLayout, KVPool
from tests.kv_rows import key_rows, value_rows


def _pool(layout: KVLayout = KVLayout.ROWS, *, blocks: int = 4, block_size: int = 4) -> KVPool:
    return KVPool(
        layers=2,
        kv_heads=1,
        head_dim=4,
        blocks=blocks,
        block_size=block_size,
        dtype=torch.bfloat16 if layout is KVLayout.PAIRS else torch.float32,
        device=torch.device("cpu"),
        layout=layout,
    )


@pytest.mark.parametrize("layout", KVLayout)
def test_rows_are_read_back_from_their_slots(layout: KVLayout) -> None:
    pool = _pool(layout)
    keys, values = torch.randn(1, 3, 4).to(pool.dtype), torch.randn(1, 3, 4).to(pool.dtype)
    pool.write(1, torch.tensor([13, 2, 7]), keys, values)
    for row, slot in enumerate([13, 2, 7]):
        assert torch.equal(key_rows(pool)[1, :, slot // 4, slot % 4], keys[:, row])
        assert torch.equal(value_rows(pool)[1, :, slot // 4, slot % 4], values[:, row])
    assert not pool.keys[0].any()
    assert int(value_rows(pool).any(dim=-1).sum()) == 3


def test_a_prepared_block_is_empty_or_a_copy() -> None:
    pool = _pool()
    pool.keys.fill_(torch.inf)
    pool.values.fill_(torch.nan)
    pool.prepare([BlockTask(2)])
    assert not pool.keys[:, :, 2].any()
    pool.values[:, :, 2] = 5.0
    pool.prepare([BlockTask(0, source=2)])
    assert (pool.values[:, :, 0] == 5.0).all()
    assert pool.values[:, :, 1].isnan().all()


@given(data=st.data(), layout=st.sampled_from(KVLayout))
def test_moves_happen_all_at_once_and_touch_nothing_else(data: st.DataObject, layout: KVLayout) -> None:
    pool = _pool(layout)
    numbers = torch.arange(16.0)[:, None].expand(16, 4)
    for layer in range(2):
        pool.write(layer, torch.arange(16), numbers[None] + 100 * layer, -numbers[None])
    targets = data.draw(st.lists(st.integers(0, 15), unique=True, max_size=8))
    sources = data.draw(st.lists(st.integers(0, 15), min_size=len(targets), max_size=len(targets)))
    pool.move(torch.tensor(sources, dtype=torch.int64), torch.tensor(targets, dtype=torch.int64))
    expected = list(range(16))
    for source, target in zip(sources, targets, strict=True):
        expected[target] = source
    for layer in range(2):
        assert key_rows(pool)[layer, 0, :, :, 0].flatten().tolist() == [
            number + 100 * layer for number in expected
        ]
        assert (-value_rows(pool)[layer, 0, :, :, 0]).flatten().tolist() == expected
