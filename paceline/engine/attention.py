"""Attention of a ragged batch: each row sees its own session's prefix and its own ancestors.

Exactness. A row's result must not depend on what else is in the batch, nor on whether its ancestors
lie in the KV pool (plain decoding) or beside it in the batch (a draft tree). So keys are split at
absolute multiples of the block size; a block's share is one float32 matrix product over the block's
keys followed by the tree nodes that will live in that block, with weight zero for every key that the
row does not see; shares are added in order of position. A float32 product accumulates each output
along its keys in order, and adding zero changes nothing, so a row's bits depend on its own keys
alone. tests/unit/engine/test_exact.py holds this against random batches.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from paceline.engine.kv import KVPool
from paceline.engine.rows import PlacedSegment, RaggedBatch

NAME = "paceline"
# A product of fewer rows than this may take a matrix-vector kernel with another order of summation.
MIN_PRODUCT_ROWS = 4
# Columns of the all-ones matrix that sums weights: wide enough to be summed by the same kind of kernel.
ONES_COLUMNS = 16


class AttentionContext:
    """What the attention function of every layer needs for one forward."""

    def __init__(self, batch: RaggedBatch, pool: KVPool) -> None:
        self.batch = batch
        self.pool = pool
        self._views: dict[tuple[int, int | None], _View] = {}

    def view(self, index: int, window: int | None) -> _View:
        """What segment `index` sees, in layers with this sliding window. Made once a forward."""
        view = self._views.get((index, window))
        if view is None:
            view = _make_view(self.batch.segments[index], self.pool.block_size, window)
            self._views[index, window] = view
        return view


@dataclass(frozen=True, slots=True)
class _Edge:
    """A block that is not full, and the tree nodes that will live in it."""

    # Slots of the block that are read, from its first on; 0 when only tree nodes are in it.
    slots: int
    # Tree nodes in this block; None stands for all of them.
    nodes: list[int] | None
    # Additive mask over the slots, then the nodes, [rows, slots + nodes]; None when all are seen.
    mask: Tensor | None


@dataclass(frozen=True, slots=True)
class _View:
    """What the rows of one segment see."""

    # Blocks before the one that holds the root.
    full_blocks: int
    # Additive mask over them, [full_blocks, 1, 1, rows, block_size]; None when every row sees all.
    full_mask: Tensor | None
    edges: list[_Edge]


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
    **_: Any,
) -> tuple[Tensor, None]:
    """The attention function that `transformers.AttentionInterface` calls in every layer.

    query [1, heads, rows, head_dim], key and value [1, kv_heads, rows, head_dim] ->
    [1, rows, heads, head_dim]. Writes the runs' keys and values to the pool and stashes the tree's.
    """
    batch, pool = paceline.batch, paceline.pool
    layer = int(module.layer_idx)  # type: ignore[arg-type]
    work = pool.keys.dtype
    queries = query[0].to(work) * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    keys, values = key[0].to(work), value[0].to(work)  # [kv_heads, rows, head_dim]
    pool.write_runs(layer, batch, keys, values)
    if batch.tree_rows.numel():
        pool.stash(keys[:, batch.tree_rows], values[:, batch.tree_rows])

    heads, rows, _dim = queries.shape
    output = torch.empty(rows, heads, value.shape[-1], dtype=query.dtype, device=query.device)
    for index, placed in enumerate(batch.segments):
        own = placed.rows
        tree = slice(own.stop - len(placed.segment.tree_tokens), own.stop)
        output[own] = _segment_attention(
            queries[:, own],
            pool.read(layer, placed.segment.blocks[: placed.num_blocks]),
            (keys[:, tree], values[:, tree]),
            paceline.view(index, sliding_window),
            softcap,
        )
    return output[None], None


def _make_view(placed: PlacedSegment, block_size: int, window: int | None) -> _View:
    segment, positions = placed.segment, placed.positions
    device = positions.device
    rows = positions[:, None]  # [rows, 1]
    node_positions = positions[len(segment.run) :]

    def visible_slots(first: int, stop: int) -> Tensor:
        slots = torch.arange(first, stop, device=device)
        visible = (slots <= rows) & (slots <= segment.root_position)
        return visible if window is None else visible & (slots > rows - window)

    def additive(visible: Tensor) -> Tensor:
        return torch.zeros(visible.shape, device=device).masked_fill_(~visible, -torch.inf)

    full_blocks = placed.num_blocks - 1
    edge_start = full_blocks * block_size
    full_mask = None
    if full_blocks and (segment.start < edge_start - 1 or window is not None):
        mask = additive(visible_slots(0, edge_start))
        full_mask = mask.view(len(rows), full_blocks, 1, 1, block_size).permute(1, 2, 3, 0, 4).contiguous()

    slots = segment.root_position + 1 - edge_start
    ancestors = placed.ancestors
    if window is not None:
        ancestors = ancestors & (node_positions > rows - window)
    edges: list[_Edge] = []
    node_blocks = (node_positions // block_size).tolist()
    for block in range(full_blocks, max(node_blocks, default=full_blocks) + 1):
        nodes = [node for node, own in enumerate(node_blocks) if own == block]
        seen = ancestors[:, nodes]
        if block == full_blocks:
            seen = torch.cat([visible_slots(edge_start, edge_start + slots), seen], dim=1)
        edges.append(
            _Edge(
                slots=slots if block == full_blocks else 0,
                nodes=None if len(nodes) == len(node_blocks) else nodes,
                mask=None if bool(seen.all()) else additive(seen),
            )
        )
    return _View(full_blocks, full_mask, edges)


def _segment_attention(
    queries: Tensor,
    cached: tuple[Tensor, Tensor],
    tree: tuple[Tensor, Tensor],
    view: _View,
    softcap: float | None,
) -> Tensor:
    """queries [heads, rows, d] over a segment's blocks and tree -> [rows, heads, d]."""
    block_keys, block_values = cached  # [blocks, kv_heads, block_size, d]
    heads, rows, dim = queries.shape
    kv_heads = block_keys.shape[1]
    group = heads // kv_heads
    grouped = queries.reshape(kv_heads, group * rows, dim)
    if group * rows < MIN_PRODUCT_ROWS:
        grouped = nn.functional.pad(grouped, (0, 0, 0, MIN_PRODUCT_ROWS - group * rows))

    full = view.full_blocks
    peaks: list[Tensor] = []
    full_scores: Tensor | None = None
    if full:
        full_scores = _scores(grouped, block_keys[:full], view.full_mask, group, rows, softcap)
        peaks.append(full_scores.amax(dim=(0, -1)))
    edge_scores: list[Tensor] = []
    edge_values: list[Tensor] = []
    for edge in view.edges:
        keys, values = _edge_keys(block_keys[full], block_values[full], tree, edge)
        scores = _scores(grouped, keys, edge.mask, group, rows, softcap)
        peaks.append(scores.amax(dim=-1))
        edge_scores.append(scores)
        edge_values.append(values)
    peak = peaks[0]
    for other in peaks[1:]:
        peak = torch.maximum(peak, other)
    peak = peak[..., None]  # [kv_heads, product rows, 1]

    mixed, weight = None, None
    if full_scores is not None:
        shares, sums = _share(full_scores, peak, block_values[:full])
        for share, total in zip(shares, sums, strict=True):
            mixed = share if mixed is None else mixed + share
            weight = total if weight is None else weight + total
    for scores, values in zip(edge_scores, edge_values, strict=True):
        share, total = _share(scores, peak, values)
        mixed = share if mixed is None else mixed + share
        weight = total if weight is None else weight + total
    assert mixed is not None
    assert weight is not None
    result: Tensor = (mixed / weight)[:, : group * rows]
    return result.reshape(heads, rows, -1).transpose(0, 1)


def _edge_keys(
    block_keys: Tensor, block_values: Tensor, tree: tuple[Tensor, Tensor], edge: _Edge
) -> tuple[Tensor, Tensor]:
    """Keys and values [kv_heads, slots + nodes, d] of an edge."""
    tree_keys, tree_values = tree
    if edge.nodes is not None:
        tree_keys, tree_values = tree_keys[:, edge.nodes], tree_values[:, edge.nodes]
    keys, values = block_keys[:, : edge.slots], block_values[:, : edge.slots]
    if tree_keys.shape[1] == 0:
        return keys, values
    return torch.cat([keys, tree_keys], dim=1), torch.cat([values, tree_values], dim=1)


def _scores(
    grouped: Tensor, keys: Tensor, mask: Tensor | None, group: int, rows: int, softcap: float | None
) -> Tensor:
    """Masked scores [..., kv_heads, product rows, keys]; rows that only fill the product stay unmasked."""
    scores = torch.matmul(grouped, keys.transpose(-1, -2))
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    if mask is not None:
        real = scores[..., : group * rows, :]
        real.view(*real.shape[:-2], group, rows, real.shape[-1]).add_(mask)
    return scores


def _share(scores: Tensor, peak: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """Weighted values [..., product rows, d] and the sums of weights [..., product rows, 1]."""
    weights = torch.exp_(scores.sub_(peak))
    ones = _ones((*values.shape[:-1], ONES_COLUMNS), values.dtype, values.device)
    return torch.matmul(weights, values), torch.matmul(weights, ones)[..., :1]


_ONES: dict[tuple[torch.dtype, torch.device], Tensor] = {}


def _ones(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Ones of a shape, as a view of one buffer that only grows."""
    wanted = math.prod(shape)
    buffer = _ONES.get((dtype, device))
    if buffer is None or buffer.numel() < wanted:
        buffer = torch.ones(2 * wanted, dtype=dtype, device=device)
        _ONES[dtype, device] = buffer
    return buffer[:wanted].view(shape)
