"""Who leads and who follows, in one process: calls arrive in order and leave the same KV."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config

from bench.engine_loop import loaded
from paceline.engine.blocks import BlockTask
from paceline.engine.engine import Engine, SessionRows, StepInput
from paceline.engine.loading import ModelError
from paceline.engine.model import load_weights
from paceline.engine.parallel import Call, Ranks, engine_of, follow
from paceline.engine.rows import Segment
from paceline.sampling import SamplingParams
from tests.kv_rows import key_rows, value_rows

CPU = torch.device("cpu")
SAMPLING = SamplingParams(max_tokens=1)


class Recorded(Ranks):
    """Keeps what is sent, and gives it to whoever receives."""

    def __init__(self) -> None:
        super().__init__(0, 2)
        self.calls: list[Call] = []

    def send(self, call: Call) -> None:
        self.calls.append(call)

    def receive(self) -> Call:
        return self.calls.pop(0)


def test_a_follower_ends_with_the_leaders_kv(tiny_model: Path) -> None:
    ranks = Recorded()
    with loaded(tiny_model) as decoder:
        leader = engine_of(decoder, 3, ranks)
        tree = Segment([5, 6, 7], 0, (0,), (8, 9), (-1, -1))
        leader.step(StepInput([SessionRows(tree, SAMPLING)], [BlockTask(0)]))
        leader.accept([(tree, (1,))])
        leader.step(StepInput([SessionRows(Segment([4], 4, (2,)), SAMPLING)], [BlockTask(2, source=0)]))
        # In the slot that was moved from: whoever moved again would spoil the one that was moved to.
        for position in (4, 5):
            leader.step(StepInput([SessionRows(Segment([3], position, (0,)), SAMPLING)]))
        ranks.end()
        assert len(ranks.calls) == 5, "one for each step, and the end"
        follower = Engine(decoder, 3)
        follow(ranks, follower)
    assert not ranks.calls
    for block in (0, 2):
        written = slice(block * decoder.block_size, block * decoder.block_size + 4)
        for ours, theirs in (
            (key_rows(leader.pool), key_rows(follower.pool)),
            (value_rows(leader.pool), value_rows(follower.pool)),
        ):
            rows, same = (each.flatten(2, 3)[:, :, written] for each in (ours, theirs))
            assert rows.abs().sum() > 0
            assert torch.equal(rows, same)


def test_the_launcher_says_who_one_is(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    alone = Ranks.launched()
    assert (alone.rank, alone.size, alone.local_size, alone.leads) == (0, 1, 1, True)
    assert alone.least(3) == 3
    for name, value in (("RANK", "5"), ("WORLD_SIZE", "8"), ("LOCAL_RANK", "1"), ("LOCAL_WORLD_SIZE", "4")):
        monkeypatch.setenv(name, value)
    one = Ranks.launched()
    assert (one.rank, one.size, one.local_rank, one.local_size, one.leads) == (5, 8, 1, 4, False)


def test_heads_that_cannot_be_divided_are_refused(tiny_model: Path) -> None:
    with pytest.raises(ModelError, match=r"4 heads and 2 key heads cannot be divided by 4 ranks.*--nproc"):
        load_weights(tiny_model, device=CPU, dtype=None, ranks=4)


def test_a_model_without_a_plan_is_refused(tmp_path: Path) -> None:
    config = GPT2Config(n_embd=32, n_layer=1, n_head=2, vocab_size=64)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    with pytest.raises(
        ModelError, match=r"no tensor parallel plan for gpt2 models; serve it with one process"
    ):
        load_weights(tmp_path, device=CPU, dtype=None, ranks=2)


def test_a_gpu_by_number_is_refused() -> None:
    with pytest.raises(ModelError, match="give --device cuda, not cuda:1"):
        Ranks(0, 2).join(torch.device("cuda:1"))
