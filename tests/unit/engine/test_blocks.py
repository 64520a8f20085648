"""Blocks of the KV pool: who holds them, which texts they keep, what is shared and copied."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paceline.engine.blocks import MIN_COPIED, BlockAllocator, BlockTask, OutOfBlocksError
from paceline.prefix import root_of

BLOCK = 16


def _finish(allocator: BlockAllocator, text: list[int]) -> list[int]:
    """A session that computed all of `text` and ended; returns the blocks it had."""
    table: list[int] = []
    allocator.adopt(table, text)
    allocator.extend(table, -(-len(text) // BLOCK))
    held = list(table)
    allocator.keep(table, text, len(text))
    allocator.release(table)
    return held


@given(data=st.data())
def test_a_block_holds_what_its_sessions_computed_and_nothing_else(data: st.DataObject) -> None:
    """Against a model: `memory` is what the pool would hold, every session checks all it adopts."""
    total = data.draw(st.integers(2, 12))
    allocator = BlockAllocator(total, 4)
    memory: dict[int, list[int]] = {}

    def do_tasks() -> None:
        for task in allocator.take_tasks():
            memory[task.block] = [] if task.source is None else list(memory[task.source])

    sessions: list[tuple[list[int], list[int]]] = []
    for _ in range(data.draw(st.integers(1, 25))):
        if data.draw(st.booleans()) and sessions:
            table, text = sessions.pop(data.draw(st.integers(0, len(sessions) - 1)))
            allocator.keep(table, text, len(text) - data.draw(st.integers(0, 1)))
            allocator.release(table)
            continue
        text = data.draw(st.lists(st.integers(0, 1), min_size=1, max_size=24))
        table = []
        found = allocator.adopt(table, text)
        assert found < len(text)
        do_tasks()
        held = [token for block in table for token in memory[block]][:found]
        assert held == text[:found]
        try:
            allocator.extend(table, -(-len(text) // 4))
        except OutOfBlocksError:
            allocator.release(table)
            continue
        do_tasks()
        for index, block in enumerate(table):
            if index * 4 >= found - found % 4:
                memory[block] = text[index * 4 : index * 4 + 4]
        sessions.append((table, text))
        held_blocks = {block for table, _ in sessions for block in table}
        assert len(held_blocks) + allocator.free == total
    for table, _ in sessions:
        allocator.release(table)
    assert allocator.free == total


def test_more_than_is_free_is_refused_whole() -> None:
    allocator = BlockAllocator(4, BLOCK)
    table: list[int] = []
    allocator.extend(table, 3)
    with pytest.raises(OutOfBlocksError):
        allocator.extend(table, 5)
    assert (table, allocator.free) == ([0, 1, 2], 1)


def test_full_blocks_are_shared_and_the_rest_is_copied() -> None:
    allocator = BlockAllocator(8, BLOCK)
    text = list(range(2 * BLOCK + 12))
    first = _finish(allocator, text)
    allocator.take_tasks()
    table: list[int] = []
    found = allocator.adopt(table, [*text, 99, 98])
    assert found == len(text)
    assert table[:2] == first[:2]
    assert table[2] != first[2]
    assert allocator.take_tasks() == [BlockTask(table[2], first[2])]


@pytest.mark.parametrize(("same", "found"), [(MIN_COPIED - 1, 0), (MIN_COPIED, MIN_COPIED)])
def test_a_text_that_parts_inside_a_block_copies_what_is_worth_it(same: int, found: int) -> None:
    allocator = BlockAllocator(4, BLOCK)
    _finish(allocator, list(range(BLOCK)))
    assert allocator.adopt([], [*range(same), *[50] * BLOCK]) == found


def test_the_same_text_again_leaves_its_last_token_to_compute() -> None:
    allocator = BlockAllocator(8, BLOCK)
    text = list(range(2 * BLOCK))
    _finish(allocator, text)
    assert allocator.adopt([], text) == 2 * BLOCK - 1


def test_the_longest_unused_text_goes_first_and_its_end_before_its_beginning() -> None:
    allocator = BlockAllocator(4, BLOCK)
    old, new = [1] * 2 * BLOCK, [2] * 2 * BLOCK
    _finish(allocator, old)
    _finish(allocator, new)
    _finish(allocator, [3] * BLOCK)
    table: list[int] = []
    assert allocator.adopt(table, old) == BLOCK
    allocator.release(table)
    assert allocator.adopt([], new) == 2 * BLOCK - 1


def test_texts_are_not_kept_where_that_is_off() -> None:
    allocator = BlockAllocator(4, BLOCK, keep_texts=False)
    _finish(allocator, [1] * BLOCK)
    assert allocator.adopt([], [1] * BLOCK) == 0


def test_texts_of_other_salts_share_no_block() -> None:
    allocator = BlockAllocator(16, BLOCK)
    text = list(range(3 * BLOCK + 5))

    def computed(salt: str) -> int:
        """Positions that a session finds computed; then it computes all and ends."""
        table: list[int] = []
        found = allocator.adopt(table, text, root_of(salt))
        allocator.extend(table, -(-len(text) // BLOCK))
        allocator.keep(table, text, len(text), root_of(salt))
        allocator.release(table)
        return found

    assert [computed(salt) for salt in ("", "mine", "yours")] == [0, 0, 0]
    assert min(computed(salt) for salt in ("", "mine", "yours")) >= 3 * BLOCK
