"""Hidden states beside the KV: outputs of chosen layers, kept for every position whose keys are kept.

The pool has the KV's blocks: what copies, moves or gives up a block or a slot there does so here, so
positions that a prefix hit found, a late reader or a step that nobody listened to have theirs too. Layers are
numbered as in transformers' `hidden_states`: 0 is the embeddings', i the output of decoder layer i, the last
one before the model's final norm.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from paceline.engine.blocks import BlockTask
from paceline.engine.kv import zeros


class StatePool:
    """A row of `width` numbers per slot and kept layer: `states` is [layers, blocks, block_size, width].

    Written on the engine's thread, read on any.
    """

    def __init__(
        self,
        layers: Sequence[int],
        *,
        blocks: int,
        block_size: int,
        width: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        """`layers`: the numbers of those that are kept, ascending."""
        self.layers = tuple(layers)
        self.block_size = block_size
        self.width = width
        self.dtype = dtype
        self.states = zeros((len(self.layers), blocks, block_size, width), dtype, device)
        self._place = {number: place for place, number in enumerate(self.layers)}
        self._on_gpu = _GpuReads(device) if device.type == "cuda" else None

    def prepare(self, tasks: Sequence[BlockTask]) -> None:
        """Copy blocks that sessions share. Others are left as they are: nobody reads what was not written."""
        for task in tasks:
            if task.source is not None:
                self.states[:, task.block] = self.states[:, task.source]
        self._written()

    def write(self, slots: Tensor, layer: int, rows: Tensor) -> None:
        """Put rows [rows, width] of a kept layer into slots [rows]."""
        self._slots()[self._place[layer]].index_copy_(0, slots, rows.to(self.dtype))
        self._written()

    def move(self, sources: Tensor, targets: Tensor) -> None:
        """Copy slots to other slots in every layer at once."""
        states = self._slots()
        states[:, targets] = states[:, sources]
        self._written()

    def read(self, blocks: Sequence[int], start: int, count: int, layers: Sequence[int]) -> Tensor:
        """States [count, layers, width] on the CPU of the positions from `start` on of a block table.

        Raises `ValueError` for a layer that is not kept and for positions beyond the table.
        """
        if not set(layers) <= set(self.layers):
            raise ValueError(f"states of layers {list(layers)} were asked for, {list(self.layers)} are kept")
        if not (start >= 0 and count >= 0 and start + count <= len(blocks) * self.block_size):
            raise ValueError(f"{count} positions from {start} on are not in {len(blocks)} blocks")
        if self._on_gpu is not None:
            positions = torch.arange(start, start + count)
            slots = torch.tensor(blocks)[positions // self.block_size] * self.block_size
            chosen = torch.tensor([self._place[layer] for layer in layers])
            return self._on_gpu.gather(self._slots(), chosen, slots + positions % self.block_size)
        read = torch.empty(count, len(layers), self.width, dtype=self.dtype)
        # By numpy: torch's copy would begin a team of threads on the reader's thread.
        kept, out = (tensor.view(torch.uint8).numpy() for tensor in (self.states, read))
        done = 0
        while done < count:
            index, offset = divmod(start + done, self.block_size)
            rows = min(self.block_size - offset, count - done)
            for place, layer in enumerate(layers):
                here = kept[self._place[layer], blocks[index], offset : offset + rows]
                out[done : done + rows, place] = here
            done += rows
        return read

    def _slots(self) -> Tensor:
        """[layers, slots, width]."""
        return self.states.flatten(1, 2)

    def _written(self) -> None:
        if self._on_gpu is not None:
            self._on_gpu.written()


class _GpuReads:
    """Reads that wait for what was written before them, and not for the step that is running."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)
        self._event = torch.cuda.Event()

    def written(self) -> None:
        """Note that something was, by the current stream."""
        self._event.record(torch.cuda.current_stream(self._device))

    def gather(self, states: Tensor, layers: Tensor, slots: Tensor) -> Tensor:
        """states [layers, slots, width] -> [chosen slots, chosen layers, width] on the CPU."""
        with torch.cuda.stream(self._stream):
            self._stream.wait_event(self._event)
            rows = states[layers.to(self._device)[None, :], slots.to(self._device)[:, None]]
            return rows.cpu()
