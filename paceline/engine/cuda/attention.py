"""Attention on GPUs: one FlexAttention call a layer over the whole paged pool, ragged queries, tree masks.

The pool's slots are the keys of all rows (PagedAttention as in torch's `attention-gym`); which blocks a row
reads is the block mask, what it sees within them the mask function. Without a compiler (tests on the CPU)
the same call runs as plain operators, which know the mask function only; so that one says everything.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from paceline.engine.attention import Reach, Rule
from paceline.engine.kv import KVForm, KVPool
from paceline.engine.rows import RaggedBatch

# Rows that share one list of KV blocks.
QUERY_BLOCK = 128
_KEPT = (torch.float32, torch.bfloat16, torch.float16)


class FlexAttention:
    """The backend of devices for which torch compiles FlexAttention."""

    def kv_form(self, dtype: torch.dtype, *, head_dim: int, kv_heads: int, block_size: int) -> KVForm:
        """See `AttentionBackend.kv_form`. Types that are not kept, such as float64, become float32."""
        return KVForm(dtype if dtype in _KEPT else torch.float32, head_dim)

    def begin(self, batch: RaggedBatch, pool: KVPool) -> _Forward:
        """Lay out the batch's masks."""
        return _Forward(batch, pool)


class _Forward:
    def __init__(self, batch: RaggedBatch, pool: KVPool) -> None:
        self._pool = pool
        self._slots = batch.slots
        self._positions = batch.positions
        counts = [placed.segment.num_rows for placed in batch.segments]
        nodes = max(1, *(len(placed.segment.tree_tokens) for placed in batch.segments))
        # Chunk of each block in the text of each segment, -1 where it does not hold it. [segments, blocks]
        chunk_of = torch.full((len(counts), pool.num_blocks), -1)
        # Which tree nodes each row sees: its ancestors and itself. [rows, nodes]
        ancestors = torch.zeros(batch.num_rows, nodes, dtype=torch.bool)
        # The position of each tree node. [segments, nodes]
        depths = torch.zeros(len(counts), nodes, dtype=torch.int64)
        prefixes = torch.zeros(batch.num_rows, dtype=torch.int64)
        # Slots that no row sees.
        hidden = torch.zeros(pool.num_blocks * pool.block_size, dtype=torch.bool)
        for index, placed in enumerate(batch.segments):
            segment = placed.segment
            chunk_of[index, torch.tensor(placed.blocks)] = torch.arange(len(placed.blocks))
            hidden[[segment.slot(key, pool.block_size) for key in segment.hidden]] = True
            run = placed.row + len(segment.run)
            prefixes[placed.row : run] = torch.arange(segment.start + 1, segment.root_index + 2)
            prefixes[run : placed.rows.stop] = segment.root_index + 1
            for node, path in enumerate(segment.paths()):
                depths[index, node] = segment.root_index + len(path)
                if node >= segment.computed_nodes:
                    seen = [key - segment.root_index - 1 for key in path]
                    ancestors[run + node - segment.computed_nodes, seen] = True
        owner = torch.repeat_interleave(torch.tensor(counts))
        kv_indices, kv_counts = _blocks_by_query_block(owner, chunk_of >= 0)
        device = batch.positions.device
        self._owner, self._chunk_of, self._ancestors, self._depths, self._prefixes, self._hidden = (
            made.to(device) for made in (owner, chunk_of, ancestors, depths, prefixes, hidden)
        )
        self._kv_indices, self._kv_counts = kv_indices.to(device), kv_counts.to(device)
        self._masks: dict[Reach, BlockMask] = {}

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, rule: Rule) -> Tensor:
        """See `LayerAttention.attend`."""
        pool, width = self._pool, query.shape[-1]
        # Layers with narrower heads than others.
        if width != pool.head_dim:
            query, key, value = (F.pad(rows, (0, pool.head_dim - width)) for rows in (query, key, value))
        pool.write(layer, self._slots, key, value)
        keys, values = (kept[layer].flatten(1, 2)[None].to(query.dtype) for kept in (pool.keys, pool.values))
        if rule.reach not in self._masks:
            self._masks[rule.reach] = self._mask(rule.reach)
        attended = _compiled(query.device.type)(
            query[None],
            keys,
            values,
            score_mod=self._score(rule),
            block_mask=self._masks[rule.reach],
            scale=rule.scale,
            enable_gqa=True,
            return_lse=rule.sinks is not None,
        )
        if rule.sinks is not None:
            attended, sums = attended
            # The share of the weights that the sink leaves.
            attended = attended * torch.sigmoid(sums - rule.sinks[:, None])[..., None].to(attended.dtype)
        result: Tensor = attended[0].transpose(0, 1)[..., :width]
        return result

    def _score(self, rule: Rule) -> Callable[..., Tensor] | None:
        """What becomes of a score before the softmax; None where nothing does."""
        softcap, bias = rule.softcap, rule.bias
        if softcap is None and bias is None:
            return None

        def score_mod(score: Tensor, _batch: Tensor, head: Tensor, row: Tensor, slot: Tensor) -> Tensor:
            if softcap is not None:
                score = softcap * torch.tanh(score / softcap)
            if bias is not None:
                _, place, _ = self._place(row, slot)
                score = score + bias[head, place.clamp(0, bias.shape[1] - 1)]
            return score

        return score_mod

    def _place(self, row: Tensor, slot: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Whether a slot is of a row's text, its position, and whether it is on the row's path."""
        owner, size, last = self._owner, self._pool.block_size, self._ancestors.shape[1] - 1
        # Kernels ask for rows behind the last one too; nobody reads what comes of them.
        row = row.clamp(max=len(owner) - 1)
        chunk = self._chunk_of[owner[row], slot // size]
        key = chunk * size + slot % size
        node = key - self._prefixes[row]
        near = node.clamp(0, last)
        place = torch.where(node < 0, key, self._depths[owner[row], near])
        return chunk >= 0, place, (node < 0) | ((node <= last) & self._ancestors[row, near])

    def _mask(self, reach: Reach) -> BlockMask:
        size, owner, positions, hidden = self._pool.block_size, self._owner, self._positions, self._hidden

        def visible(_batch: Tensor, _head: Tensor, row: Tensor, slot: Tensor) -> Tensor:
            own, place, seen = self._place(row, slot)
            position = positions[row.clamp(max=len(owner) - 1)]
            if reach.window is not None:
                seen = seen & (place > position - reach.window)
            if reach.chunk is not None:
                seen = seen & (place // reach.chunk == position // reach.chunk)
            return own & seen & ~hidden[slot]

        return BlockMask.from_kv_blocks(
            self._kv_counts[None, None],
            self._kv_indices[None, None],
            BLOCK_SIZE=(QUERY_BLOCK, size),
            mask_mod=visible,
            seq_lengths=(len(owner), self._pool.num_blocks * size),
            compute_q_blocks=False,
        )


def _blocks_by_query_block(owner: Tensor, holds: Tensor) -> tuple[Tensor, Tensor]:
    """Indices [query blocks, blocks] and counts [query blocks] of the KV blocks that some row there holds.

    owner [rows], holds [segments, blocks] bool.
    """
    wanted = torch.stack([holds[part.unique()].any(dim=0) for part in owner.split(QUERY_BLOCK)])
    order = wanted.to(torch.int8).argsort(dim=1, descending=True, stable=True)
    return order.to(torch.int32), wanted.sum(dim=1, dtype=torch.int32)


@cache
def _compiled(device: str) -> Any:
    return flex_attention if device == "cpu" else torch.compile(flex_attention, dynamic=True)
