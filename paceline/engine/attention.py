"""Attention of a ragged batch: each row sees its own session's prefix and its own ancestors.

Exactness. A row's result must not depend on what else is in the batch, nor on whether an ancestor's
key stands at its own position (plain decoding) or among a draft tree's. So keys are cut into chunks at
absolute multiples of the block size; a chunk's share is one float32 matrix product over the chunk's
keys followed by the tree nodes whose position lies in that chunk, with weight zero for every key that
the row does not see; shares are added in order of position. A float32 product accumulates each output
along its keys in order, and adding zero changes nothing, so a row's bits depend on its own keys alone.
tests/unit/engine/test_exact.py holds this against random batches.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from paceline.engine.kv import KVPool
from paceline.engine.rows import PlacedSegment, RaggedBatch

NAME = "paceline"
# Rows of the smallest product, when at least SHORT_SPAN keys are seen and when fewer are.
MIN_PRODUCT_ROWS = 4
SHORT_SPAN_ROWS = 32
SHORT_SPAN = 16
# torch computes a product of fewer multiplications than this without BLAS.
BLAS_THRESHOLD = 400


@dataclass(frozen=True, slots=True)
class _View:
    """What the rows of one segment see of its span."""

    # Additive mask [rows, span]; None when every row sees all.
    mask: Tensor | None
    # Columns of the span in each chunk, in order of position.
    chunks: list[slice | Tensor]


class AttentionContext:
    """What the attention function of every layer needs for one forward."""

    def __init__(self, batch: RaggedBatch, pool: KVPool) -> None:
        self.batch = batch
        self.pool = pool
        self._views: dict[tuple[int, int | None], _View] = {}

    def view(self, index: int, window: int | None) -> _View:
        """What segment `index` sees in layers with this sliding window. Made once a forward."""
        view = self._views.get((index, window))
        if view is None:
            placed = self.batch.segments[index]
            view = _View(_mask(placed, window), _chunks(placed, self.pool.block_size))
            self._views[index, window] = view
        return view


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
    [1, rows, heads, head_dim]. Writes every row's key and value to its slot of the pool first.
    """
    batch, pool = paceline.batch, paceline.pool
    layer = int(module.layer_idx)  # type: ignore[arg-type]
    work = pool.keys.dtype
    queries = query[0].to(work) * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    pool.write(layer, batch.slots, key[0].to(work), value[0].to(work))
    outputs = [
        _segment_attention(
            queries[:, placed.rows],
            pool.read(layer, placed.span),
            paceline.view(index, sliding_window),
            pool.head_dim,
            softcap,
        )
        for index, placed in enumerate(batch.segments)
    ]
    output = outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=1)
    return output.transpose(0, 1)[None].to(query.dtype), None


def _mask(placed: PlacedSegment, window: int | None) -> Tensor | None:
    segment, positions = placed.segment, placed.positions
    rows = positions[:, None]  # [rows, 1]
    slots = torch.arange(segment.root_position + 1, device=positions.device)
    visible, ancestors = slots <= rows, placed.ancestors
    if window is not None:
        visible = visible & (slots > rows - window)
        ancestors = ancestors & (positions[len(segment.run) :] > rows - window)
    seen = torch.cat([visible, ancestors], dim=1)
    if bool(seen.all()):
        return None
    return torch.zeros(seen.shape, device=seen.device).masked_fill_(~seen, -torch.inf)


def _chunks(placed: PlacedSegment, block_size: int) -> list[slice | Tensor]:
    segment = placed.segment
    keys = segment.root_position + 1
    starts = range(0, keys, block_size)
    chunks: list[slice | Tensor] = [slice(start, min(start + block_size, keys)) for start in starts]
    node_chunks = (placed.positions[len(segment.run) :] // block_size).tolist()
    last = len(chunks) - 1
    if all(chunk == last for chunk in node_chunks):
        chunks[last] = slice(starts[last], keys + len(node_chunks))
        return chunks
    for chunk in range(last, max(node_chunks) + 1):
        columns = [keys + node for node, own in enumerate(node_chunks) if own == chunk]
        if chunk == last:
            chunks[last] = torch.tensor(
                [*range(starts[last], keys), *columns], device=placed.positions.device
            )
        else:
            chunks.append(torch.tensor(columns, device=placed.positions.device))
    return chunks


def _least_rows(head_dim: int, span: int) -> int:
    """Rows that a product over `span` keys is filled up to.

    A smaller one may take a kernel with another order of summation: torch's own loops, or MKL's for few
    columns or for few rows beside long heads (seen up to 10 rows of 256, none from head_dim / 16 up).
    """
    if span < SHORT_SPAN:
        return SHORT_SPAN_ROWS
    # Two keys are the fewest whose order can matter.
    beyond_own_loops = -(-BLAS_THRESHOLD // (2 * (head_dim + KVPool.ONES)))
    return max(MIN_PRODUCT_ROWS, beyond_own_loops, -(-head_dim // 16))


def _segment_attention(
    queries: Tensor, cached: tuple[Tensor, Tensor], view: _View, head_dim: int, softcap: float | None
) -> Tensor:
    """queries [heads, rows, d] over a segment's keys and values [kv_heads, span, ...] -> the same shape."""
    keys, values = cached
    heads, rows, dim = queries.shape
    kv_heads = keys.shape[0]
    product_rows = heads // kv_heads * rows
    grouped = queries.reshape(kv_heads, product_rows, dim)
    filling = _least_rows(dim, keys.shape[1]) - product_rows
    if filling > 0:
        grouped = nn.functional.pad(grouped, (0, 0, 0, filling))
    scores = torch.bmm(grouped, keys.transpose(1, 2))  # [kv_heads, product rows, span]
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    if view.mask is not None:
        real = scores[:, :product_rows]
        real.view(kv_heads, heads // kv_heads, rows, -1).add_(view.mask)
    weights = scores.sub_(scores.amax(dim=-1, keepdim=True)).exp_()
    mixed = torch.bmm(weights[..., view.chunks[0]], values[:, view.chunks[0]])
    for chunk in view.chunks[1:]:
        mixed = mixed + torch.bmm(weights[..., chunk], values[:, chunk])
    result: Tensor = mixed[:, :product_rows, :head_dim] / mixed[:, :product_rows, head_dim : head_dim + 1]
    return result.reshape(heads, rows, head_dim)
