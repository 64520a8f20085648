"""A head over many texts at once: their keys in a pool of blocks, rows of all of them in one pass."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from paceline.engine.attention import Rule
from paceline.engine.blocks import BlockTask
from paceline.engine.devices import backend_of
from paceline.engine.kv import KVPool
from paceline.engine.model import BLOCK_SIZE
from paceline.engine.rows import Segment, build_batch
from paceline.heads.eagle import EagleHead


class PagedHead:
    """A head that drafts, with its keys and values. On one thread at a time.

    A text's row p holds the target's state at position p and the token at p + 1, so a text has one row less
    than tokens. A node's row holds its token and the output of its parent's row.
    """

    def __init__(self, head: EagleHead, embedding: Tensor, *, blocks: int) -> None:
        """`embedding` [vocab, d] is the target's. The head's linear layers become those of its device."""
        config = head.config
        if embedding.shape != (config.vocab, config.width):
            raise ValueError(
                f"the head is of a target with an embedding of {config.vocab} x {config.width} numbers, "
                f"not {' x '.join(map(str, embedding.shape))}"
            )
        self.head = head
        self.device, self.dtype = head.norm.weight.device, head.norm.weight.dtype
        self.blocks = blocks
        self._embedding = embedding.to(self.device, self.dtype)
        backend = backend_of(self.device.type)
        backend.pack_linears(head)
        self._attention = backend.attention(heads=config.heads)
        form = self._attention.kv_form(
            self.dtype, head_dim=config.head_dim, kv_heads=config.kv_heads, block_size=BLOCK_SIZE
        )
        self._pool = KVPool(
            layers=1,
            kv_heads=config.kv_heads,
            head_dim=form.head_dim,
            blocks=blocks,
            block_size=BLOCK_SIZE,
            dtype=form.dtype,
            device=self.device,
            layout=form.layout,
            clear_blocks=form.clear_blocks,
        )
        self._rule = Rule(scale=config.head_dim**-0.5)

    @property
    def block_size(self) -> int:
        """Rows of a text whose keys are in one block."""
        return BLOCK_SIZE

    @torch.inference_mode()
    def fuse(self, states: Tensor) -> Tensor:
        """See `EagleHead.fuse`; of any type and device."""
        return self.head.fuse(states.to(self.device, self.dtype))

    @torch.inference_mode()
    def forward(self, segments: Sequence[Segment], states: Tensor, tasks: Sequence[BlockTask]) -> Tensor:
        """Outputs [rows, d] of all rows; `states` [rows, d] are fused, or outputs of the rows before."""
        batch = build_batch(segments, block_size=BLOCK_SIZE, device=self.device)
        self._pool.prepare(tasks)
        embedded = self._embedding[batch.token_ids]
        projected = self.head.project(embedded, states, batch.positions)
        query, key, value = (rows.transpose(0, 1) for rows in projected)
        attended = self._attention.begin(batch, self._pool).attend(0, query, key, value, self._rule)
        return self.head.finish(attended, states)

    @torch.inference_mode()
    def logits(self, outputs: Tensor) -> Tensor:
        """See `EagleHead.logits`."""
        return self.head.logits(outputs)


def block_bytes(head: EagleHead) -> int:
    """Bytes of the keys and values of one block."""
    config = head.config
    return 2 * config.kv_heads * config.head_dim * BLOCK_SIZE * head.norm.weight.dtype.itemsize
