"""One model over two processes: the text of one, and the end of either process is the end of both."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from bench.engine_loop import loaded
from bench.families import make_family_model
from paceline.client import Chunk, Finished, GatewayClient, Generation, Started
from paceline.engine.engine import Engine
from tests.pods import Pod, Pods
from tests.rank import BLOCKS, KEPT, texts
from tests.waiting import wait_until

pytestmark = pytest.mark.long(reason="torchrun starts two processes that import everything, six times")

# Less than torchrun gives a process to end by itself.
SOON_SECONDS = 20.0
# Families that docs/operations.md names; transformers has no plan for some others.
DIVIDED = ("llama", "llama_mha", "qwen2", "qwen3", "gemma3", "mixtral")
PROMPT = "the quick brown fox jumps over the lazy dog"
ASKED = {
    "greedy": Generation(text=PROMPT, max_tokens=150, temperature=0.0, speculation=False),
    "greedy, drafted": Generation(text=PROMPT, max_tokens=150, temperature=0.0),
    "sampled": Generation(text=PROMPT, max_tokens=150, temperature=0.8, seed=7, speculation=False),
    "sampled, drafted": Generation(text=PROMPT, max_tokens=150, temperature=0.8, seed=7),
    "across blocks": Generation(text=f"{PROMPT} " * 8, max_tokens=150, temperature=0.8, seed=3),
}


def divided(folder: Path, model: Path, redis_url: str) -> Pods:
    flags = ("--threads", "1", "--grace-seconds", "20", "--kv-tokens", "4096")
    return Pods(folder, model, redis_url, verifier_flags=flags, ranks=2)


def running(ranks: list[int]) -> list[int]:
    return [rank for rank in ranks if Path(f"/proc/{rank}").exists()]


async def ends_with_an_error(torchrun: Pod, ranks: list[int]) -> None:
    await wait_until(lambda: not running(ranks), "all ranks have ended", SOON_SECONDS)
    await wait_until(lambda: not torchrun.running, "torchrun has ended", SOON_SECONDS)
    assert torchrun.exit_code


def ids_in(events: Sequence[Started | Chunk | Finished]) -> list[int]:
    return [token for event in events if isinstance(event, Chunk) for token in event.token_ids]


async def ids_of(pods: Pods, asked: Generation) -> list[int]:
    async with GatewayClient(pods.grpc) as client:
        return ids_in([event async for event in client.generate(asked, timeout_s=120)])


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, redis_url: str) -> Iterator[Pods]:
    with divided(tmp_path_factory.mktemp("ranks"), tiny_model, redis_url) as pods:
        yield pods.start()


@pytest.mark.parametrize("asked", ASKED.values(), ids=list(ASKED))
async def test_the_text_is_that_of_one_process(asked: Generation, fleet: Pods, two_ranks: Pods) -> None:
    assert len(two_ranks.pods[two_ranks.verifier].ranks()) == 2
    expected = await ids_of(fleet, asked)
    assert len(expected) > 100
    assert await ids_of(two_ranks, asked) == expected


async def test_trees_were_verified_by_both(two_ranks: Pods) -> None:
    await ids_of(two_ranks, ASKED["greedy, drafted"])
    assert two_ranks.verifier_status().accepted_tokens > 0


def test_families_give_the_text_of_one_process(tmp_path: Path) -> None:
    folders = [make_family_model(tmp_path / family, family) for family in DIVIDED]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*launcher, "-m", "tests.rank", *map(str, folders)]
    root = Path(__file__).parents[2]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=240, check=False)
    assert not done.returncode, done.stderr[-4000:]
    divided = dict(zip(DIVIDED, map(json.loads, done.stdout.splitlines()), strict=True))
    for family, folder in zip(DIVIDED, folders, strict=True):
        with loaded(folder) as decoder:
            made, states = texts(Engine(decoder, BLOCKS, KEPT))
        assert divided[family][0] == made, family
        assert divided[family][1] == pytest.approx(states, rel=1e-3, abs=1e-3), family


LEADER, FOLLOWER = 0, 1


@pytest.mark.parametrize("victim", [LEADER, FOLLOWER], ids=["leader", "follower"])
async def test_the_death_of_one_ends_both(
    victim: int, tmp_path: Path, tiny_model: Path, redis_url: str
) -> None:
    with divided(tmp_path, tiny_model, redis_url) as pods:
        pods.start(drafters=False)
        torchrun = pods.pods[pods.verifier]
        ranks = torchrun.ranks()
        asked = Generation(text=PROMPT, max_tokens=4000, temperature=0.8, seed=7)
        async with GatewayClient(pods.grpc) as client:
            stream = client.generate(asked, timeout_s=120)
            for _ in range(10):
                await anext(stream)
            os.kill(ranks[victim], signal.SIGKILL)
            await ends_with_an_error(torchrun, ranks)
            await stream.aclose()


async def test_a_follower_that_dies_while_nothing_runs_ends_the_leader(
    tmp_path: Path, tiny_model: Path, redis_url: str
) -> None:
    with divided(tmp_path, tiny_model, redis_url) as pods:
        torchrun = pods.start_verifier(pods.verifier)
        ranks = torchrun.ranks()
        os.kill(ranks[FOLLOWER], signal.SIGKILL)
        await ends_with_an_error(torchrun, ranks)


async def test_sigterm_lets_sessions_end_before_both_do(
    fleet: Pods, tmp_path: Path, tiny_model: Path, redis_url: str
) -> None:
    asked = Generation(text=PROMPT, max_tokens=200, temperature=0.8, seed=11)
    expected = await ids_of(fleet, asked)
    with divided(tmp_path, tiny_model, redis_url) as pods:
        pods.start(drafters=False)
        torchrun = pods.pods[pods.verifier]
        ranks = torchrun.ranks()
        async with GatewayClient(pods.grpc) as client:
            stream = client.generate(asked, timeout_s=120)
            events = [await anext(stream) for _ in range(10)]
            assert isinstance(events[-1], Chunk)
            await asyncio.to_thread(torchrun.stop)
            events += [event async for event in stream]
        assert ids_in(events) == expected
        assert len(expected) > 100
        assert not running(ranks)
        assert "rank lost" not in torchrun.log.read_text()
