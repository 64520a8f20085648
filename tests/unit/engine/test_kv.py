"""The KV pool: where slots lie, what compaction moves."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from paceline.engine.blocks import BlockTask
from paceline.engine.kv import KVPool


def _pool(blocks: int = 4, block_size: int = 4) -> KVPool:
    return KVPool(
        layers=2,
        kv_heads=1,
        head_dim=3,
        blocks=blocks,
        block_size=block_size,
        dtype=torch.float32,
        device=torch.device("cpu"),
    )


def test_rows_are_read_back_from_a_range_and_from_scattered_blocks() -> None:
    pool = _pool()
    keys, values = torch.randn(1, 3, 3), torch.randn(1, 3, 3)
    pool.prepare([BlockTask(block) for block in range(4)])
    pool.write(1, pool.index(torch.tensor([13, 2, 7])), keys, values)
    for blocks in (torch.tensor([3, 0, 1]), slice(0, 4)):
        read_keys, read_values = pool.read(1, blocks)
        of = {number: place for place, number in enumerate(torch.arange(4)[blocks].tolist())}
        for row, slot in enumerate([13, 2, 7]):
            assert torch.equal(read_keys[of[slot // 4], :, slot % 4], keys[:, row])
            assert torch.equal(read_values[of[slot // 4], :, slot % 4, :3], values[:, row])
    assert (pool.values[..., 3:] == 1).all()
    assert not pool.keys[0].any()


@given(data=st.data())
def test_moves_happen_all_at_once_and_touch_nothing_else(data: st.DataObject) -> None:
    pool = _pool()
    pool.prepare([BlockTask(block) for block in range(4)])
    every = pool.index(torch.arange(16))
    numbers = torch.arange(16.0)[:, None].expand(16, 3)
    for layer in range(2):
        pool.write(layer, every, numbers[None] + 100 * layer, -numbers[None])
    targets = data.draw(st.lists(st.integers(0, 15), unique=True, max_size=8))
    sources = data.draw(st.lists(st.integers(0, 15), min_size=len(targets), max_size=len(targets)))
    pool.move(torch.tensor(sources, dtype=torch.int64), torch.tensor(targets, dtype=torch.int64))
    expected = list(range(16))
    for source, target in zip(sources, targets, strict=True):
        expected[target] = source
    for layer in range(2):
        assert pool.keys[layer, :, 0, :, 0].flatten().tolist() == [
            number + 100 * layer for number in expected
        ]
        assert (-pool.values[layer, :, 0, :, 0]).flatten().tolist() == expected
        assert (pool.values[layer, ..., 3:] == 1).all()
