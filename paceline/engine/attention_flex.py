"""Attention on GPUs: one FlexAttention call a layer over the whole paged pool, ragged queries, tree masks.

The pool's slots are the keys of all rows (PagedAttention as in torch's `attention-gym`); which blocks a row
reads is the block mask, what it sees within them the mask function. Without a compiler (tests on the CPU)
the same call runs as plain operators, which know the mask function only; so that one says everything.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from paceline.engine.kv import KVPool
from paceline.engine.rows import RaggedBatch

# Rows that share one list of KV blocks.
QUERY_BLOCK = 128


class FlexAttention:
    """The backend of devices for which torch compiles FlexAttention."""

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
            for node, parent in enumerate(segment.tree_parents):
                depths[index, node] = depths[index, parent] + 1 if parent >= 0 else segment.root_index + 1
                if parent >= 0:
                    ancestors[run + node] = ancestors[run + parent]
                ancestors[run + node, node] = True
        owner = torch.repeat_interleave(torch.tensor(counts))
        kv_indices, kv_counts = _blocks_by_query_block(owner, chunk_of >= 0)
        device = batch.positions.device
        self._owner, self._chunk_of, self._ancestors, self._depths, self._prefixes, self._hidden = (
            made.to(device) for made in (owner, chunk_of, ancestors, depths, prefixes, hidden)
        )
        self._kv_indices, self._kv_counts = kv_indices.to(device), kv_counts.to(device)
        self._masks: dict[int | None, BlockMask] = {}

    def attend(
        self,
        layer: int,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        scale: float,
        softcap: float | None,
        window: int | None,
    ) -> Tensor:
        """See `LayerAttention.attend`."""
        pool = self._pool
        pool.write(layer, self._slots, key, value)
        keys, values = (kept[layer].flatten(1, 2)[None].to(query.dtype) for kept in (pool.keys, pool.values))
        if window not in self._masks:
            self._masks[window] = self._mask(window)

        def capped(score: Tensor, *_: Tensor) -> Tensor:
            return softcap * torch.tanh(score / softcap) if softcap is not None else score

        attended = _compiled(query.device.type)(
            query[None],
            keys,
            values,
            score_mod=capped if softcap is not None else None,
            block_mask=self._masks[window],
            scale=scale,
            enable_gqa=True,
        )
        result: Tensor = attended[0].transpose(0, 1)
        return result

    def _mask(self, window: int | None) -> BlockMask:
        size = self._pool.block_size
        owner, chunk_of, ancestors = self._owner, self._chunk_of, self._ancestors
        depths, prefixes, positions = self._depths, self._prefixes, self._positions
        hidden = self._hidden
        last = ancestors.shape[1] - 1

        def visible(_batch: Tensor, _head: Tensor, row: Tensor, slot: Tensor) -> Tensor:
            # Kernels ask for rows behind the last one too; nobody reads what comes of them.
            row = row.clamp(max=len(owner) - 1)
            chunk = chunk_of[owner[row], slot // size]
            key = chunk * size + slot % size
            node = key - prefixes[row]
            near = node.clamp(0, last)
            seen = (node < 0) | ((node <= last) & ancestors[row, near])
            if window is not None:
                place = torch.where(node < 0, key, depths[owner[row], near])
                seen = seen & (place > positions[row] - window)
            return (chunk >= 0) & seen & ~hidden[slot]

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
