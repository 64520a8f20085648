"""How many KV blocks are made: as asked, as memory allows, as sessions can use."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from bench.engine_loop import loaded
from paceline.engine import memory
from paceline.engine.loading import ModelError
from paceline.engine.model import BLOCK_SIZE, Decoder


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Decoder]:
    """Heads of 24 numbers, which the CPU's kernels keep in 32."""
    folder = tmp_path_factory.mktemp("llama")
    config = LlamaConfig(
        hidden_size=48,
        intermediate_size=64,
        num_hidden_layers=2,
        vocab_size=64,
        num_attention_heads=2,
        max_position_embeddings=1024,
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    with loaded(folder, torch.bfloat16) as decoder:
        yield decoder


def test_a_block_takes_what_the_pool_takes_for_it(decoder: Decoder) -> None:
    pool = decoder.kv_pool(3)
    assert decoder.block_bytes == (pool.keys.nbytes + pool.values.nbytes) // 3


def test_states_that_are_kept_take_their_share(decoder: Decoder, monkeypatch: pytest.MonkeyPatch) -> None:
    states = decoder.state_pool([0, 1, 2], 5)
    assert decoder.state_bytes(3) * BLOCK_SIZE == states.states.nbytes // 5
    whole = decoder.block_bytes + states.states.nbytes // 5
    monkeypatch.setattr(memory, "free_bytes", lambda device: round(7 * whole / memory.CPU_SHARE))
    assert memory.kv_blocks(decoder, kv_tokens=0, max_sessions=64, kept_layers=3) == 7
    assert memory.kv_blocks(decoder, kv_tokens=0, max_sessions=64) > 7


def test_asked_tokens_are_rounded_up(decoder: Decoder) -> None:
    assert memory.kv_blocks(decoder, kv_tokens=BLOCK_SIZE + 1, max_sessions=1) == 2


def test_memory_and_what_sessions_can_use_bound_it(decoder: Decoder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        memory, "free_bytes", lambda device: round(10 * decoder.block_bytes / memory.CPU_SHARE)
    )
    assert memory.kv_blocks(decoder, kv_tokens=0, max_sessions=64) == 10
    assert memory.kv_blocks(decoder, kv_tokens=0, max_sessions=1) == 1024 // BLOCK_SIZE
    assert memory.kv_blocks(decoder, kv_tokens=0, max_sessions=64, local_ranks=2) == 5
    monkeypatch.setattr(memory, "free_bytes", lambda device: decoder.block_bytes)
    with pytest.raises(ModelError, match="one block of 128 tokens takes"):
        memory.kv_blocks(decoder, kv_tokens=0, max_sessions=1)
