"""Attention of a ragged batch: each row sees its own session's prefix and its own ancestors.

All sessions whose segments have about as many rows are one batch of matrix products, an item per session
and KV block; query heads that share a key head are folded into rows (as FlashInfer does). Nothing is padded
to another session's length: an item is a block that its session holds.

Exactness. A row's result must not depend on what else is in the batch, nor on whether an ancestor's key
came from plain decoding or from a draft tree. So a row's share of a block is one float32 product over the
whole block, with weight zero for every key that the row does not see, and shares are added in order of
position. A product accumulates each output along its keys in order, and adding zero changes nothing, so a
row's bits depend on its own keys alone, if each key stands in the block of its position: `rows.tree_room`.
tests/unit/engine/test_exact.py holds this against random batches.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from paceline.engine.kv import KVPool
from paceline.engine.rows import PlacedSegment, RaggedBatch

NAME = "paceline"
# Products of fewer rows may take kernels with another order of summation: MKL's for few rows, more of
# them beside long heads (seen up to 10 rows of 256, none from head_dim / 16 up).
MIN_PRODUCT_ROWS = 4
# Weights are powers of two: torch's exp takes four times as long where keys are hidden, its exp2 does not.
LOG2_E = math.log2(math.e)
# Segments are grouped by rows: powers of two up to here, multiples of it beyond.
ROW_STEP = 32
# Segments of up to so many rows are one group: filling up costs less than reading blocks here and there.
NARROW_ROWS = 8
# The share of a range of blocks that a group must hold for the range to be read in place, holes and all.
MIN_DENSITY = 0.6


class AttentionContext:
    """What the attention function of every layer needs for one forward."""

    def __init__(self, batch: RaggedBatch, pool: KVPool, *, heads: int) -> None:
        self.pool = pool
        self.write_index = pool.index(batch.slots)
        by_rows: dict[int, list[PlacedSegment]] = {}
        narrow = [
            placed.segment.num_rows for placed in batch.segments if placed.segment.num_rows <= NARROW_ROWS
        ]
        for placed in batch.segments:
            rows = placed.segment.num_rows
            rows = max(narrow) if rows <= NARROW_ROWS else rows
            rows = _group_rows(rows, heads // pool.kv_heads, pool.head_dim)
            by_rows.setdefault(rows, []).append(placed)
        self.groups = [_Group(placed, rows, batch.num_rows, heads, pool) for rows, placed in by_rows.items()]
        # Where the groups' results, one after the other, hold each row's heads. [rows * heads]
        self.result_index: Tensor | None = None
        if len(self.groups) > 1:
            self.result_index = torch.cat([group.target_rows for group in self.groups]).argsort()


def _group_rows(rows: int, group_heads: int, head_dim: int) -> int:
    least = max(rows, -(-max(MIN_PRODUCT_ROWS, -(-head_dim // 16)) // group_heads))
    return 1 << (least - 1).bit_length() if least <= ROW_STEP else -(-least // ROW_STEP) * ROW_STEP


class _Group:
    """Segments that are filled up to the same number of rows, and their blocks: one batch of products."""

    def __init__(
        self, segments: Sequence[PlacedSegment], rows: int, batch_rows: int, heads: int, pool: KVPool
    ) -> None:
        self._segments = segments
        self._device = pool.keys.device
        self._block_size = pool.block_size
        self.rows = rows
        self.count = len(segments)
        held = [placed.blocks for placed in segments]
        pairs = sorted(
            (block, owner, chunk) for owner, blocks in enumerate(held) for chunk, block in enumerate(blocks)
        )
        self.blocks, self._items = _layout(pairs, self._device)
        owners = [owner for owner, _ in self._items]
        self.num_items = len(owners)
        self._place_rows(owners, batch_rows, heads, pool.kv_heads)
        self._place_items(owners)
        self._masks: dict[int | None, tuple[int, Tensor | None]] = {}

    def _place_rows(self, owners: Sequence[int], batch_rows: int, heads: int, kv_heads: int) -> None:
        """Indices between [heads * batch rows] and [segments, kv_heads, heads of a group, rows]."""
        filled = [
            [placed.row + min(row, placed.segment.num_rows - 1) for row in range(self.rows)]
            for placed in self._segments
        ]
        head = torch.arange(heads)[:, None] * batch_rows  # [heads, 1]
        # A hole, owner -1, takes anybody's queries: nobody reads what comes of them.
        query = torch.tensor([filled[owner] for owner in owners])[:, None, :] + head
        self.query_index = query.flatten().to(self._device)
        # [rows of all segments, heads]: where the result lies, in order of the segments' rows.
        result = torch.arange(self.count * heads * self.rows).view(self.count, heads, self.rows)
        self.result_index = torch.cat(
            [
                result[index, :, : placed.segment.num_rows].T.flatten()
                for index, placed in enumerate(self._segments)
            ]
        ).to(self._device)
        self.target_rows = torch.cat(
            [torch.arange(placed.rows.start, placed.rows.stop) for placed in self._segments]
        ).to(self._device)

    def _place_items(self, owners: Sequence[int]) -> None:
        """The items of each segment in order of position."""
        self.owners: Tensor | None = None
        self.order: Tensor | None = None
        self.table: Tensor | None = None
        if self._items == [(0, chunk) for chunk in range(self.num_items)]:
            return
        numbered = sorted(
            (chunk, owner, item) for item, (owner, chunk) in enumerate(self._items) if owner >= 0
        )
        chunks = 1 + max(chunk for chunk, _, _ in numbered)
        # [segments, chunks]; the item behind the last one stands for a chunk that a segment lacks.
        table = [[self.num_items] * chunks for _ in range(self.count)]
        for chunk, owner, item in numbered:
            table[owner][chunk] = item
        self.table = torch.tensor(table, device=self._device)
        self.order = torch.tensor([item for _, _, item in numbered], device=self._device)
        self.ordered_owners = torch.tensor([owner for _, owner, _ in numbered], device=self._device)
        self.owners = torch.tensor([max(owner, 0) for owner in owners], device=self._device)

    def mask(self, window: int | None) -> tuple[int, Tensor | None]:
        """The first item of which some row does not see all, and [items from there, 1, rows, block].

        Additive. Made once a forward for each sliding window.
        """
        if window not in self._masks:
            self._masks[window] = self._make_mask(window)
        return self._masks[window]

    def _make_mask(self, window: int | None) -> tuple[int, Tensor | None]:
        seen = [placed_mask(placed, self.rows, self._block_size, window) for placed in self._segments]
        first = 0
        if window is None and self.owners is None:
            first = self._segments[0].segment.start // self._block_size
        whole = torch.ones(self.rows, self._block_size, dtype=torch.bool, device=self._device)
        items = [seen[owner][chunk] if owner >= 0 else whole for owner, chunk in self._items[first:]]
        visible = torch.stack(items)[:, None]
        if bool(visible.all()):
            return first, None
        return first, torch.zeros(visible.shape, device=self._device).masked_fill_(~visible, -torch.inf)


def _layout(
    pairs: Sequence[tuple[int, int, int]], device: torch.device
) -> tuple[slice | Tensor, list[tuple[int, int]]]:
    """Which blocks to multiply, and the (owner, chunk) of each; owner -1 for a block that nobody needs.

    `pairs` are (block, owner, chunk), ascending. Blocks that lie close together are read in place.
    """
    low, high = pairs[0][0], pairs[-1][0] + 1
    shared = any(left[0] == right[0] for left, right in pairwise(pairs))
    if shared or len(pairs) < MIN_DENSITY * (high - low):
        return torch.tensor([block for block, _, _ in pairs], device=device), [pair[1:] for pair in pairs]
    items = [(-1, 0)] * (high - low)
    for block, owner, chunk in pairs:
        items[block - low] = (owner, chunk)
    return slice(low, high), items


def placed_mask(placed: PlacedSegment, rows: int, block_size: int, window: int | None) -> Tensor:
    """Which keys each row sees: bool [chunks, rows, block]; rows behind the segment's own repeat its last."""
    segment, positions = placed.segment, placed.positions
    device = positions.device
    chunks = len(placed.blocks)
    own, keys, nodes = segment.num_rows, segment.root_position + 1, len(segment.tree_tokens)
    slots = torch.arange(chunks * block_size, device=device)
    column = positions[:, None]
    visible = (slots <= column) & (slots < keys)
    ancestors = placed.ancestors
    if window is not None:
        visible &= slots > column - window
        ancestors = ancestors & (positions[len(segment.run) :] > column - window)
    if nodes:
        visible[:, keys : keys + nodes] = ancestors
    if rows > own:
        visible = torch.cat([visible, visible[-1:].expand(rows - own, -1)])
    return visible.view(rows, chunks, block_size).transpose(0, 1)


def ragged_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    paceline: AttentionContext,
    scaling: float | None = None,
    softcap: float | None = None,
    sliding_window: int | None = None,
    **unused: Any,
) -> tuple[Tensor, None]:
    """The attention function that `transformers.AttentionInterface` calls in every layer.

    query [1, heads, rows, head_dim], key and value [1, kv_heads, rows, head_dim] ->
    [1, rows, heads, head_dim]. Writes every row's key and value to its slot of the pool first.
    """
    pool = paceline.pool
    layer = int(module.layer_idx)  # type: ignore[arg-type]
    heads, rows, head_dim = query.shape[1:]
    pool.write(layer, paceline.write_index, key[0], value[0])
    scale = head_dim**-0.5 if scaling is None else scaling
    if softcap is None:
        scale *= LOG2_E
    queries = query.reshape(heads * rows, head_dim).to(pool.keys.dtype) * scale
    results = [
        _attend(queries, *pool.read(layer, group.blocks), group, group.mask(sliding_window), softcap)
        for group in paceline.groups
    ]
    if paceline.result_index is None:
        result = results[0]
    else:
        result = torch.cat(results).view(rows, -1)[paceline.result_index]
    return result.view(1, rows, heads, head_dim).to(query.dtype), None


def _attend(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    group: _Group,
    mask: tuple[int, Tensor | None],
    softcap: float | None,
) -> Tensor:
    """queries [heads * batch rows, d]; keys and values [items, kv_heads, block, ...] ->
    [the group's rows * heads, d]."""
    items, kv_heads, block, head_dim = keys.shape
    wanted = queries[group.query_index].view(items * kv_heads, -1, head_dim)
    scores = torch.bmm(wanted, keys.reshape(-1, block, head_dim).transpose(1, 2))
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * (softcap * LOG2_E)
    first, hidden = mask
    if hidden is not None:
        scores.view(items, -1, group.rows, block)[first:] += hidden
    highest = scores.amax(dim=-1).view(items, -1)  # [items, heads * rows]
    if group.owners is None or group.table is None:
        if items > 1:
            highest = highest.amax(dim=0, keepdim=True).expand(items, -1)
    else:
        nothing = highest.new_full((1, highest.shape[1]), -torch.inf)
        highest = torch.cat([highest, nothing])[group.table].amax(dim=1)[group.owners]
    weights = scores.sub_(highest.reshape(items * kv_heads, -1, 1)).exp2_()
    shares = torch.bmm(weights, values.reshape(-1, block, values.shape[-1])).view(items, -1)
    mixed = _sum_shares(shares, group).view(-1, values.shape[-1])[group.result_index]
    result: Tensor = mixed[:, :head_dim] / mixed[:, head_dim : head_dim + 1]
    return result


def _sum_shares(shares: Tensor, group: _Group) -> Tensor:
    """[items, ...] -> [segments, ...], each segment's shares added one by one in order of position."""
    if group.order is not None:
        total = shares.new_zeros(group.count, shares.shape[1])
        return total.index_add_(0, group.ordered_owners, shares[group.order])
    total = shares[0]
    for share in shares[1:]:
        total = total + share
    return total
