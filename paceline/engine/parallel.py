"""Tensor parallelism: rank 0 leads; the others do the same steps, each with its share of the weights.

A launcher such as torchrun starts the processes (ranks). transformers divides the weights by the model's own
plan and puts the collectives into its modules; a rank attends with its own heads over KV of its own. The
leader alone has sessions. It sends every step (`engine.MirroredStep`) to the others before it does the step
itself, so that all of them reach the collectives in the same order.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import TypeAlias

import torch
import torch.distributed as dist

from paceline.engine.check import blocks_for
from paceline.engine.engine import Engine, MirroredStep
from paceline.engine.loading import ModelError
from paceline.engine.model import Decoder, load_weights

# A follower waits for the next step as long as there are no requests: a lost process shows by its closed
# connection, not by silence.
_IDLE = timedelta(days=365)
# Ranks reach the first collective as far apart as they take to load their weights.
_COLLECTIVE = timedelta(hours=2)


class RankLostError(RuntimeError):
    """Another process of this model has ended, and no call can be made any more."""


# None is the end.
Call: TypeAlias = MirroredStep | None


class Ranks:
    """This process's view of the processes that serve one model together. On one thread at a time."""

    def __init__(self, rank: int = 0, size: int = 1, *, local_rank: int = 0, local_size: int = 1) -> None:
        """`local_rank` and `local_size`: among those on this machine."""
        self.rank, self.size = rank, size
        self.local_rank, self.local_size = local_rank, local_size
        self._calls: dist.ProcessGroup | None = None

    @classmethod
    def launched(cls) -> Ranks:
        """Read the launcher's environment variables; without them this process is the only rank."""

        def number(name: str, otherwise: int) -> int:
            return int(os.environ.get(name, otherwise))

        size = number("WORLD_SIZE", 1)
        return cls(
            number("RANK", 0),
            size,
            local_rank=number("LOCAL_RANK", 0),
            local_size=number("LOCAL_WORLD_SIZE", size),
        )

    @property
    def leads(self) -> bool:
        """Whether this is the process with the sessions."""
        return self.rank == 0

    def join(self, device: torch.device) -> torch.device:
        """Connect to the other ranks; returns this rank's device. Raises `ModelError` where it cannot."""
        device = self._own(device)
        try:
            dist.init_process_group(
                "nccl" if device.type == "cuda" else "gloo",
                timeout=_COLLECTIVE,
                device_id=device if device.type == "cuda" else None,
            )
            # Calls go over sockets on GPUs too: who waits for one must not keep the GPU busy.
            self._calls = dist.new_group(backend="gloo", timeout=_IDLE)
        except (RuntimeError, ValueError) as error:
            raise ModelError(f"rank {self.rank} cannot meet the other {self.size - 1}: {error}") from error
        return device

    def _own(self, device: torch.device) -> torch.device:
        if device.type == "cpu":
            if torch.accelerator.is_available():
                raise ModelError(
                    "transformers divides a model over the GPUs where there are any; take --device cuda, "
                    "or hide them (CUDA_VISIBLE_DEVICES=) to divide it over CPU processes"
                )
            return device
        if device.index is not None:
            raise ModelError(f"each rank takes a GPU of its own; give --device cuda, not {device}")
        if self.local_size > torch.cuda.device_count():
            raise ModelError(
                f"{self.local_size} ranks on a machine with {torch.cuda.device_count()} GPUs; "
                "start as many as it has (--nproc-per-node)"
            )
        torch.cuda.set_device(self.local_rank)
        return torch.device(device.type, self.local_rank)

    def wait_for_all(self) -> None:
        """Return when every rank has come here."""
        dist.barrier(group=self._calls)

    def least(self, number: int) -> int:
        """The least of all ranks' numbers."""
        if self.size == 1:
            return number
        least = torch.tensor(number)
        dist.all_reduce(least, dist.ReduceOp.MIN, group=self._calls)
        return int(least)

    def send(self, call: Call) -> None:
        """Have all followers do `call`. Raises `RankLostError`."""
        self._exchange([call])

    def end(self) -> None:
        """Let the followers end. Raises `RankLostError`."""
        if self.size > 1:
            self.send(None)

    def receive(self) -> Call:
        """The leader's next step, however long it takes. Raises `RankLostError`."""
        return self._exchange([None])

    def _exchange(self, box: list[Call]) -> Call:
        try:
            dist.broadcast_object_list(box, src=0, group=self._calls)
        except RuntimeError as error:
            raise RankLostError(f"rank {self.rank} has lost another one: {error}") from error
        return box[0]


def load(
    path: str | Path,
    *,
    device: torch.device,
    dtype: torch.dtype | None,
    ranks: Ranks,
    trust_remote_code: bool = False,
) -> Decoder:
    """`Decoder.load` on all ranks at once, each its share. Returns when every rank has loaded its own.

    Raises `ModelError` also where the model cannot be divided by the number of ranks.
    """
    if ranks.size == 1:
        return Decoder.load(path, device=device, dtype=dtype, trust_remote_code=trust_remote_code)
    device = ranks.join(device)
    model, shape, own = load_weights(
        path, device=device, dtype=dtype, ranks=ranks.size, trust_remote_code=trust_remote_code
    )
    decoder = Decoder(model, shape, device)
    if ranks.leads:
        try:
            decoder.verify(own, mirror=ranks.send)
        finally:
            ranks.end()
    else:
        follow(ranks, Engine(decoder, blocks_for(own, decoder.block_size)))
    ranks.wait_for_all()
    return decoder


def engine_of(decoder: Decoder, blocks: int, ranks: Ranks, keep_states: Sequence[int] = ()) -> Engine:
    """This rank's engine: the leader's has the others do every step too, and keeps the states."""
    if keep_states:
        # Where they are met is seen in a forward, which takes all ranks.
        decoder.layers.checked(keep_states)
    if not ranks.leads:
        return Engine(decoder, blocks)
    return Engine(decoder, blocks, keep_states, mirror=ranks.send if ranks.size > 1 else None)


def follow(ranks: Ranks, engine: Engine) -> None:
    """Do the leader's steps on this rank's share until it ends.

    Raises `RankLostError` between two steps; a rank that is lost within one breaks its collective.
    """
    while (step := ranks.receive()) is not None:
        engine.follow(step)
