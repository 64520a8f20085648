"""The number of KV blocks, from the memory that is free."""

from __future__ import annotations

import torch

from paceline.engine.loading import ModelError
from paceline.engine.model import BLOCK_SIZE, Decoder
from paceline.service import machine

# Share of the memory that is free after the weights were loaded. Other processes share a CPU's memory.
CPU_SHARE = 0.4
GPU_SHARE = 0.85


def free_bytes(device: torch.device) -> int:
    """Bytes on `device` that this process may still allocate."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return machine.free_memory()


def kv_blocks(
    decoder: Decoder, *, kv_tokens: int, max_sessions: int, kept_layers: int = 0, local_ranks: int = 1
) -> int:
    """Blocks to allocate: `kv_tokens` rounded up, or (0) what memory allows and the sessions can use.

    A block has keys, values and the states of `kept_layers` layers. `local_ranks` processes of one model
    share a machine's memory; a GPU is one rank's own. Raises `ModelError` when not even one block fits.
    """
    if kv_tokens:
        return -(-kv_tokens // BLOCK_SIZE)
    share = GPU_SHARE if decoder.device.type == "cuda" else CPU_SHARE / local_ranks
    block_bytes = decoder.block_bytes + BLOCK_SIZE * decoder.state_bytes(kept_layers)
    fitting = int(free_bytes(decoder.device) * share) // block_bytes
    if fitting < 1:
        raise ModelError(
            f"no memory left for KV on {decoder.device}: one block of {BLOCK_SIZE} tokens takes "
            f"{block_bytes >> 20} MiB; take a smaller model, another dtype or a larger machine"
        )
    return min(fitting, max_sessions * -(-decoder.shape.max_context // BLOCK_SIZE))
