"""The layout of a ragged batch: rows end to end, positions, slots, ancestors, logit rows."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from paceline.engine.rows import RaggedBatch, Segment, build_batch

BLOCK = 4


def _batch(*segments: Segment) -> RaggedBatch:
    return build_batch(segments, block_size=BLOCK, device=torch.device("cpu"))


def test_a_chunk_a_tree_and_a_single_row() -> None:
    batch = _batch(
        Segment(run=[1, 2, 3], start=2, blocks=(5, 6), wants_logits=False),
        # Root at position 7; 20 and 21 below it, 22 below 20.
        Segment(run=[10], start=7, blocks=(0, 1, 2), tree_tokens=[20, 21, 22], tree_parents=[-1, -1, 0]),
        Segment(run=[30], start=0, blocks=(3,)),
    )
    assert batch.num_rows == 8
    assert batch.token_ids.tolist() == [1, 2, 3, 10, 20, 21, 22, 30]
    assert batch.positions.tolist() == [2, 3, 4, 7, 8, 8, 9, 0]
    assert batch.slots.tolist() == [22, 23, 24, 7, 8, 9, 10, 12]
    assert [placed.rows for placed in batch.segments] == [slice(0, 3), slice(3, 7), slice(7, 8)]
    assert batch.logit_rows.tolist() == [3, 4, 5, 6, 7]
    assert batch.logit_parents.tolist() == [-1, 0, 0, 1, -1]
    assert batch.roots.tolist() == [-1, 0, 4]
    assert batch.segments[1].blocks == (0, 1, 2)


def test_a_tree_that_grows() -> None:
    tokens, parents = [20, 21, 22, 23, 24], [-1, -1, 0, 2, -1]
    batch = _batch(
        Segment(run=[30], start=0, blocks=(3,)),
        # Root at position 7, two nodes computed before.
        Segment(
            run=[], start=8, blocks=(0, 1, 2, 4), tree_tokens=tokens, tree_parents=parents, computed_nodes=2
        ),
        # The root's keys alone are there.
        Segment(run=[], start=8, blocks=(0, 1, 2, 4), tree_tokens=tokens, tree_parents=parents),
        Segment(run=[40], start=0, blocks=(5,), tree_tokens=[41], tree_parents=[-1]),
    )
    assert batch.token_ids.tolist() == [30, 22, 23, 24, 20, 21, 22, 23, 24, 40, 41]
    assert batch.positions.tolist() == [0, 9, 10, 8, 8, 8, 9, 10, 8, 0, 1]
    assert batch.slots.tolist() == [12, 10, 11, 16, 8, 9, 10, 11, 16, 20, 21]
    assert batch.logit_rows.tolist() == list(range(11))
    assert batch.logit_parents.tolist() == [-1, -1, 1, -1, -1, -1, 4, 6, -1, -1, 9]
    assert batch.roots.tolist() == [0, -1, -1, 9]


def test_nodes_behind_rows_cannot_have_been_computed() -> None:
    for run, computed in (([1], 1), ([], 2)):
        with pytest.raises(ValueError, match=f"{computed} of 2 nodes behind {len(run)} rows"):
            Segment(run, 4, (0, 1), [5, 6], [-1, 0], computed_nodes=computed)


def test_a_broken_block_table_is_followed() -> None:
    segment = Segment(run=[1], start=5, blocks=(2, 0, 1), tree_tokens=[9], tree_parents=[-1])
    batch = _batch(segment)
    assert batch.segments[0].blocks == (2, 0)
    assert batch.slots.tolist() == [1, 2]


@given(data=st.data())
def test_every_row_lies_where_its_segment_says(data: st.DataObject) -> None:
    segments: list[Segment] = []
    free = data.draw(st.permutations(range(40)))
    for _ in range(data.draw(st.integers(1, 5))):
        start, run = data.draw(st.integers(0, 9)), data.draw(st.integers(1, 6))
        nodes = data.draw(st.integers(0, 9))
        needed = -(-(start + run + nodes) // BLOCK)
        blocks, free = tuple(free[:needed]), free[needed:]
        segments.append(
            Segment(
                run=list(range(run)),
                start=start,
                blocks=blocks,
                tree_tokens=list(range(100, 100 + nodes)),
                tree_parents=[data.draw(st.integers(-1, node - 1)) for node in range(nodes)],
                wants_logits=data.draw(st.booleans()),
            )
        )
    batch = _batch(*segments)
    assert batch.num_rows == sum(segment.num_rows for segment in segments)
    assert len(set(batch.slots.tolist())) == batch.num_rows
    assert batch.logit_rows.tolist() == sorted(batch.logit_rows.tolist())
    for segment, placed, root in zip(segments, batch.segments, batch.roots.tolist(), strict=True):
        run = len(segment.run)
        assert batch.token_ids[placed.rows].tolist() == [*segment.run, *segment.tree_tokens]
        keys = segment.root_index + 1 + len(segment.tree_tokens)
        seen = [placed.blocks[key // BLOCK] * BLOCK + key % BLOCK for key in range(keys)]
        assert seen[segment.start :] == batch.slots[placed.rows].tolist()
        for node, parent in enumerate(segment.tree_parents):
            position = placed.positions[run - 1 if parent < 0 else run + parent] + 1
            assert placed.positions[run + node] == position
        assert (root < 0) is not segment.wants_logits
        if segment.wants_logits:
            assert batch.logit_rows[root] == placed.row + run - 1
