"""Blocks of the KV pool: who holds them, where slots lie, what compaction moves."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from paceline.engine.kv import BlockAllocator, KVPool, OutOfBlocksError


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


@given(data=st.data())
def test_allocator_laws(data: st.DataObject) -> None:
    total = data.draw(st.integers(1, 24))
    allocator = BlockAllocator(total)
    tables: list[list[int]] = [[] for _ in range(data.draw(st.integers(1, 5)))]
    for _ in range(data.draw(st.integers(1, 30))):
        table = data.draw(st.sampled_from(tables))
        before = list(table)
        if data.draw(st.booleans()):
            allocator.release(table)
            assert table == []
        else:
            wanted, free = data.draw(st.integers(0, total)), allocator.free
            if wanted - len(before) > free:
                with pytest.raises(OutOfBlocksError):
                    allocator.extend(table, wanted)
                assert (table, allocator.free) == (before, free)
            else:
                allocator.extend(table, wanted)
                assert table[: len(before)] == before
                assert len(table) == max(wanted, len(before))
        held = [block for table in tables for block in table]
        assert len(held) == len(set(held))
        assert set(held) <= set(range(total))
        assert len(held) + allocator.free == total
    for table in tables:
        allocator.release(table)
    assert allocator.free == total


def test_a_session_alone_gets_neighbours() -> None:
    allocator = BlockAllocator(8)
    table: list[int] = []
    for count in range(1, 9):
        allocator.extend(table, count)
    assert table == list(range(8))


def test_two_sessions_leave_each_other_room_to_grow() -> None:
    allocator = BlockAllocator(8)
    first: list[int] = []
    second: list[int] = []
    for count in range(1, 4):
        allocator.extend(first, count)
        allocator.extend(second, count)
    for table in (first, second):
        assert table == list(range(table[0], table[0] + 3))


def test_rows_are_read_back_from_a_range_and_from_scattered_blocks() -> None:
    pool = _pool()
    keys, values = torch.randn(1, 3, 3), torch.randn(1, 3, 3)
    pool.clear(range(4))
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
    pool.clear(range(4))
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
