"""Both attention backends give what attention row by row gives, whatever the batch and the head's shape."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from paceline.engine.attention import AttentionBackend, Reach, Rule
from paceline.engine.cpu.attention import KernelAttention, kv_layout, tile_counts
from paceline.engine.cpu.tiles import matrix_unit
from paceline.engine.cuda.attention import FlexAttention
from paceline.engine.kv import KVLayout, KVPool
from paceline.engine.rows import PlacedSegment, RaggedBatch, Segment, build_batch
from tests.kv_rows import key_rows, value_rows
from tests.spoiled import spoil

BLOCK = 32
BLOCKS = 24


@st.composite
def _batches(draw: st.DrawFn) -> RaggedBatch:
    free = draw(st.permutations(range(BLOCKS)))
    segments: list[Segment] = []
    for _ in range(draw(st.integers(1, 4))):
        start, run, nodes = draw(st.integers(0, 40)), draw(st.integers(1, 30)), draw(st.integers(0, 12))
        needed = -(-(start + run + nodes) // BLOCK)
        blocks, free = tuple(free[:needed]), free[needed:]
        if len(blocks) < needed:
            break
        parents = [draw(st.integers(-1, node - 1)) for node in range(nodes)]
        hidden = draw(st.sets(st.sampled_from(range(start)))) if start and draw(st.booleans()) else set()
        grown = nodes > 0 and draw(st.booleans())
        segments.append(
            Segment(
                [0] * (0 if grown else run),
                start + (run if grown else 0),
                blocks,
                [0] * nodes,
                parents,
                hidden=sorted(hidden),
                computed_nodes=draw(st.integers(0, nodes - 1)) if grown else 0,
            )
        )
    return build_batch(segments, block_size=BLOCK, device=torch.device("cpu"))


def _seen(placed: PlacedSegment, row: int, reach: Reach) -> list[int]:
    """Places, in the order of the session's keys, that a row sees."""
    segment = placed.segment
    run = len(segment.run)
    path, node = [], row - run + (segment.computed_nodes if row >= run else 0)
    while node >= 0:
        path.append(segment.root_index + 1 + node)
        node = segment.tree_parents[node]
    seen = [*_not_hidden(segment, segment.start + min(row + 1, run)), *reversed(path)]
    if reach.chunk:
        return seen[(len(seen) - 1) // reach.chunk * reach.chunk :]
    return seen[-(reach.window or 0) :]


def _not_hidden(segment: Segment, keys: int) -> list[int]:
    return [key for key in range(keys) if key not in segment.hidden]


def _row_by_row(
    batch: RaggedBatch,
    pool: KVPool,
    layer: int,
    query: Tensor,
    rule: Rule,
) -> Tensor:
    out = torch.zeros(batch.num_rows, *query.shape[::2], dtype=torch.float64)
    group = query.shape[0] // pool.kv_heads
    dim = query.shape[-1]
    keys_at = key_rows(pool)
    for placed in batch.segments:
        for row in range(placed.segment.num_rows):
            seen = _seen(placed, row, rule.reach)
            places = torch.tensor(seen)
            end = int(placed.positions[row]) + 1
            blocks, offsets = torch.tensor(placed.blocks)[places // BLOCK], places % BLOCK
            for head in range(query.shape[0]):
                keys = keys_at[layer, head // group, blocks, offsets, :dim].double()
                values = value_rows(pool)[layer, head // group, blocks, offsets, :dim].double()
                scores = keys @ query[head, placed.row + row].double() * rule.scale
                if rule.softcap:
                    scores = rule.softcap * torch.tanh(scores / rule.softcap)
                if rule.bias is not None:
                    scores = scores + rule.bias[head, end - len(seen) : end]
                if rule.sinks is not None:
                    scores = torch.cat([scores, rule.sinks[head : head + 1].double()])
                out[placed.row + row, head] = scores.softmax(0)[: len(seen)] @ values
    return out


@pytest.mark.parametrize("backend", ["kernels", "flex"])
@given(
    batch=_batches(),
    head_dim=st.sampled_from([16, 24, 64, 80]),
    kv_heads=st.integers(1, 2),
    group=st.sampled_from([1, 2, 3, 7]),
    softcap=st.sampled_from([None, 5.0]),
    reach=st.sampled_from([Reach(), *map(Reach, (1, 5, 20)), *(Reach(chunk=size) for size in (1, 7, 40))]),
    sinks=st.booleans(),
    biased=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    seed=st.integers(0, 1000),
)
@settings(max_examples=30, deadline=None)
def test_equals_attention_row_by_row(
    backend: str,
    batch: RaggedBatch,
    head_dim: int,
    kv_heads: int,
    group: int,
    softcap: float | None,
    reach: Reach,
    sinks: bool,
    biased: bool,
    dtype: torch.dtype,
    seed: int,
) -> None:
    if any(placed.segment.hidden for placed in batch.segments):
        reach, biased = Reach(), False
    generator = torch.Generator().manual_seed(seed)
    kernels = backend == "kernels"
    pool_dim = -(-head_dim // 16) * 16 if kernels else head_dim
    layout = kv_layout(dtype, head_dim=head_dim, group=group, block_size=BLOCK)
    pool = KVPool(
        layers=2,
        kv_heads=kv_heads,
        head_dim=pool_dim,
        blocks=BLOCKS,
        block_size=BLOCK,
        dtype=dtype,
        device=torch.device("cpu"),
        layout=layout if kernels else KVLayout.ROWS,
    )
    for layer in range(2):
        keys, values = (
            torch.randn(kv_heads, BLOCKS * BLOCK, pool_dim, generator=generator) for _ in range(2)
        )
        pool.write(layer, torch.arange(BLOCKS * BLOCK), keys, values)

    def rows(heads: int) -> Tensor:
        # As models bring them: heads side by side in a row.
        return torch.randn(batch.num_rows, heads, head_dim, generator=generator).to(dtype).transpose(0, 1)

    query, key, value = rows(kv_heads * group), rows(kv_heads), rows(kv_heads)
    attention: AttentionBackend = KernelAttention(heads=kv_heads * group) if kernels else FlexAttention()
    scale = 1 / math.sqrt(head_dim)
    rule = Rule(
        scale=scale,
        softcap=softcap,
        reach=reach,
        sinks=torch.randn(kv_heads * group, generator=generator) if sinks else None,
        bias=torch.randn(kv_heads * group, BLOCKS * BLOCK, generator=generator) if biased else None,
    )
    got = attention.begin(batch, pool).attend(1, query, key, value, rule)
    expected = _row_by_row(batch, pool, 1, query, rule)
    assert got.dtype == dtype
    tolerance = {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}[dtype]
    torch.testing.assert_close(got.double(), expected, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_what_nobody_sees_cannot_hurt(dtype: torch.dtype) -> None:
    """Infinities in slots behind a row, in rejected nodes' slots and in others' blocks."""
    pool = KVPool(
        layers=1,
        kv_heads=1,
        head_dim=32,
        blocks=3,
        block_size=BLOCK,
        dtype=dtype,
        device=torch.device("cpu"),
        layout=kv_layout(dtype, head_dim=32, group=1, block_size=BLOCK),
    )
    spoil(pool)
    segment = Segment([0] * 5, 0, (1,), [0, 0], [-1, -1])
    batch = build_batch([segment], block_size=BLOCK, device=torch.device("cpu"))
    query = torch.randn(1, 7, 32).to(dtype)
    value = query.clone()
    value[:, 5] = torch.inf  # of a node that its sibling does not see
    got = KernelAttention(heads=1).begin(batch, pool)
    out = got.attend(0, query, query, value, Rule(scale=1.0))
    assert out[[0, 1, 2, 3, 4, 6]].isfinite().all()


def test_keys_lie_in_pairs_where_the_matrix_unit_reads_them() -> None:
    sizes = {"head_dim": 64, "group": 3, "block_size": 128}
    expected = KVLayout.PAIRS if matrix_unit() else KVLayout.COLUMNS
    assert kv_layout(torch.bfloat16, **sizes) is expected
    assert kv_layout(torch.float32, **sizes) is KVLayout.COLUMNS
    for unfit in ({"head_dim": 80}, {"head_dim": 63}, {"group": 33}, {"block_size": 16}):
        assert kv_layout(torch.bfloat16, **(sizes | unfit)) is KVLayout.COLUMNS


@pytest.mark.parametrize(
    ("sizes", "threads", "expected"),
    [
        # Three key heads: two threads share 6 tiles of half of the rows evenly, and 3 of all rows not.
        ([8], 2, [2]),
        ([8], 1, [1]),
        ([8], 3, [1]),
        # More than 24 queries of 3 heads do not fit one tile.
        ([12], 1, [2]),
        # A row is not divided.
        ([1], 2, [1]),
        # Of many tiles it does not matter.
        ([8] * 32, 2, [1] * 32),
        ([], 2, []),
    ],
)
def test_threads_share_few_tiles_evenly(sizes: list[int], threads: int, expected: list[int]) -> None:
    assert tile_counts(sizes, 3, 3, threads=threads, most=24, step=3) == expected
