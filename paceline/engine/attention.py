"""Attention of a ragged batch: each row sees its own session's prefix and its own ancestors.

Exactness. A row's result must not depend on what else is in the batch, nor on whether its ancestors
lie in the KV pool (plain decoding) or beside it in the batch (a draft tree). So keys are split at
absolute multiples of the block size; a block's share is one float32 matrix product over the block's
keys followed by the tree nodes that will live in that block, with weight zero for every key that the
row does not see; shares are added in order of position. A float32 product accumulates each output
along its keys in order, and adding zero changes nothing, so a row's bits depend on its own keys
alone. `engine.exact.verify` checks this property of the machine at start.
"""

from __future__ import annotations

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
    keys = key[0].transpose(0, 1).to(work)  # [rows, kv_heads, head_dim]
    values = value[0].transpose(0, 1).to(work)
    pool.write(layer, batch.run_blocks, batch.run_offsets, keys[batch.run_rows], values[batch.run_rows])
    pool.stash(keys[batch.tree_rows], values[batch.tree_rows])

    output = torch.zeros(query.shape[2], query.shape[1], value.shape[-1], dtype=query.dtype, device=query.device)
    for index, placed in enumerate(batch.segments):
        rows = placed.rows
        tree = slice(rows.stop - len(placed.segment.tree_tokens), rows.stop)
        output[rows] = _segment_attention(
            queries[:, rows],
            pool.read(layer, placed.segment.blocks[: placed.num_blocks]),
            (keys[tree].transpose(0, 1), values[tree].transpose(0, 1)),
            _masks(batch, index, placed, pool.block_size, sliding_window),
            placed,
            softcap,
        ).to(query.dtype)
    return output[None], None


def _masks(
    batch: RaggedBatch, index: int, placed: PlacedSegment, block_size: int, window: int | None
) -> tuple[Tensor, Tensor]:
    """Additive masks of a segment: over its blocks [blocks, rows, block_size], over its tree [rows, nodes]."""
    cached = batch.masks.get((index, window))
    if cached is None:
        device = placed.positions.device
        slots = torch.arange(placed.num_blocks * block_size, device=device)
        rows = placed.positions[:, None]  # [rows, 1]
        visible = (slots <= rows) & (slots <= placed.segment.root_position)
        ancestors = placed.ancestors
        if window is not None:
            visible &= slots > rows - window
            node_positions = placed.positions[len(placed.segment.run) :]
            ancestors = ancestors & (node_positions > rows - window)
        blocked = torch.zeros(visible.shape, device=device).masked_fill_(~visible, -torch.inf)
        hidden = torch.zeros(ancestors.shape, device=device).masked_fill_(~ancestors, -torch.inf)
        over_blocks = blocked.view(len(rows), placed.num_blocks, block_size).transpose(0, 1).contiguous()
        cached = (over_blocks, hidden)
        batch.masks[index, window] = cached
    return cached


def _segment_attention(
    queries: Tensor,
    cached: tuple[Tensor, Tensor],
    tree: tuple[Tensor, Tensor],
    masks: tuple[Tensor, Tensor],
    placed: PlacedSegment,
    softcap: float | None,
) -> Tensor:
    """queries [heads, rows, d] over a segment's blocks and tree -> [rows, heads, d]."""
    block_keys, block_values = cached  # [blocks, kv_heads, block_size, d]
    tree_keys, tree_values = tree  # [kv_heads, nodes, d]
    block_mask, tree_mask = masks
    heads, rows, dim = queries.shape
    blocks, kv_heads, block_size, value_dim = block_values.shape
    product_rows = heads // kv_heads * rows
    grouped = queries.reshape(kv_heads, product_rows, dim)
    if product_rows < MIN_PRODUCT_ROWS:
        grouped = nn.functional.pad(grouped, (0, 0, 0, MIN_PRODUCT_ROWS - product_rows))
    nodes = tree_keys.shape[1]

    def masked(scores: Tensor, mask: Tensor) -> Tensor:
        if softcap is not None:
            scores = torch.tanh(scores / softcap) * softcap
        real = scores[..., :product_rows, :]
        shape = (*real.shape[:-2], heads // kv_heads, rows, real.shape[-1])
        return (real.view(shape) + mask).reshape(real.shape)

    over_blocks = masked(
        torch.matmul(grouped[None], block_keys.transpose(-1, -2)), block_mask[:, None, None]
    )  # [blocks, kv_heads, product_rows, block_size]
    peak = over_blocks.amax(dim=(0, -1))[..., None]  # [kv_heads, product_rows, 1]
    over_tree = None
    if nodes:
        over_tree = masked(torch.matmul(grouped, tree_keys.transpose(-1, -2)), tree_mask)
        peak = torch.maximum(peak, over_tree.amax(dim=-1, keepdim=True))
        over_tree = torch.exp(over_tree - peak)
    weights = torch.exp(over_blocks - peak)

    shares = _block_shares(weights, block_values, over_tree, tree_values, placed, block_size)
    total = shares[0]
    for share in shares[1:]:
        total = total + share
    mixed = total[..., :value_dim] / total[..., value_dim : value_dim + 1]
    return mixed.view(kv_heads, heads // kv_heads, rows, value_dim).reshape(heads, rows, value_dim).transpose(0, 1)


def _block_shares(
    weights: Tensor,
    block_values: Tensor,
    over_tree: Tensor | None,
    tree_values: Tensor,
    placed: PlacedSegment,
    block_size: int,
) -> list[Tensor]:
    """Each block's weighted values and, in the columns after them, its sum of weights; in order."""
    blocks = weights.shape[0]
    shares: list[Tensor] = []
    first_with_tree = blocks
    node_blocks: list[int] = []
    if over_tree is not None:
        node_blocks = (placed.positions[len(placed.segment.run) :] // block_size).tolist()
        first_with_tree = min(node_blocks)
    plain = min(first_with_tree, blocks)
    if plain:
        both = _weigh(weights[:plain], block_values[:plain])
        shares += both.unbind(0)
    if over_tree is None:
        return shares
    for block in range(first_with_tree, max(node_blocks) + 1):
        columns = [node for node, own in enumerate(node_blocks) if own == block]
        if block < blocks:
            block_weights, values = weights[block], block_values[block]
        else:
            block_weights, values = torch.zeros_like(weights[0]), block_values[-1]
        joint_weights = torch.cat([block_weights, over_tree[..., columns]], dim=-1)
        joint_values = torch.cat([values, tree_values[:, columns]], dim=1)
        shares.append(_weigh(joint_weights, joint_values))
    return shares


def _weigh(weights: Tensor, values: Tensor) -> Tensor:
    """weights [..., rows, keys] over values [..., keys, d] -> [..., rows, d + 1], weight sums last."""
    rows = weights.shape[-2]
    if rows < MIN_PRODUCT_ROWS:
        weights = nn.functional.pad(weights, (0, 0, 0, MIN_PRODUCT_ROWS - rows))
    ones = torch.ones(*values.shape[:-1], ONES_COLUMNS, dtype=values.dtype, device=values.device)
    mixed = torch.matmul(weights, values)
    sums = torch.matmul(weights, ones)
    return torch.cat([mixed, sums[..., :1]], dim=-1)[..., :rows, :]
