"""Where real gateways send sessions among real verifiers, and what these find in their prefix caches."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import pytest

from paceline.client import Chunk, GatewayClient, Generation
from tests.pods import Pods
from tests.usage import samples
from tests.waiting import wait_until

SEATS = 3


@pytest.fixture(scope="module")
def pods(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, redis_url: str) -> Iterator[Pods]:
    with Pods(
        tmp_path_factory.mktemp("routing"),
        tiny_model,
        redis_url,
        verifiers=2,
        drafters=0,
        metrics=True,
        verifier_flags=("--max-sessions", str(SEATS)),
    ) as made:
        yield made.start()


@pytest.fixture(autouse=True)
async def _quiet(pods: Pods) -> None:
    """No session of another test is left, and the gateway knows it."""
    await wait_until(lambda: not any(_sessions(pods).values()), "the verifiers are idle")
    seen = pods.gateways["gateway"].fleet
    await wait_until(lambda: not any(pod.status.sessions for pod in seen().verifiers), "that is seen")


class Held:
    """A session that goes on until it is let go."""

    def __init__(self, pods: Pods, ids: Sequence[int]) -> None:
        self.began = asyncio.Event()
        self._task = asyncio.create_task(self._read(pods, ids))

    async def _read(self, pods: Pods, ids: Sequence[int]) -> None:
        wanted = Generation(ids=ids, max_tokens=8000, ignore_eos=True, speculation=False)
        async with GatewayClient(pods.grpc) as client:
            async for event in client.generate(wanted):
                if isinstance(event, Chunk):
                    self.began.set()

    async def let_go(self) -> None:
        self._task.cancel()
        with suppress(asyncio.CancelledError):
            await self._task


def _sessions(pods: Pods) -> dict[str, int]:
    return {address: pods.verifier_status(address).sessions for address in pods.verifiers}


def _text(seed: int, tokens: int) -> list[int]:
    return random.Random(seed).choices(range(10, 250), k=tokens)


def _prefixes(pods: Pods, address: str) -> tuple[int, int]:
    """Positions of sessions that have begun at a verifier, and those of them that its prefix cache had."""
    told = samples(pods, address)
    return int(told["paceline:prefix_cache_queries_total"]), int(told["paceline:prefix_cache_hits_total"])


async def _turn(grpc: str, pods: Pods, ids: Sequence[int]) -> tuple[str, list[int], int]:
    """Where a short session with this prompt ran, its answer, and the positions that were cached there."""
    before = {address: _prefixes(pods, address) for address in pods.verifiers}
    answer: list[int] = []
    async with GatewayClient(grpc) as client:
        wanted = Generation(ids=ids, max_tokens=30, ignore_eos=True, speculation=False)
        async for event in client.generate(wanted):
            if isinstance(event, Chunk):
                answer += event.token_ids
    # Not by their steps: those of sessions that are held go on, too.
    after = {address: _prefixes(pods, address) for address in pods.verifiers}
    (where,) = [address for address in pods.verifiers if after[address][0] > before[address][0]]
    return where, answer, after[where][1] - before[where][1]


async def _occupied(pods: Pods, address: str, sessions: int) -> list[Held]:
    """So many sessions at one verifier, and none at the other."""
    held: list[Held] = []
    for seed in range(1000, 1100):
        if len(held) == sessions:
            return held
        before = _sessions(pods)[address]
        session = Held(pods, _text(seed, 5))
        await session.began.wait()
        if _sessions(pods)[address] > before:
            held.append(session)
        else:
            await session.let_go()
            others = [each for each in pods.verifiers if each != address]
            await wait_until(lambda o=others: not any(_sessions(pods)[e] for e in o), "it has gone")
    raise AssertionError("no session goes there")


async def test_a_chat_stays_at_its_verifier_and_finds_its_text_there(pods: Pods) -> None:
    said = _text(1, 300)
    home, answer, _ = await _turn(pods.grpc, pods, said)
    for turn in range(3):
        said = [*said, *answer, *_text(10 + turn, 40)]
        where, answer, cached = await _turn(pods.grpc, pods, said)
        assert where == home
        assert cached >= 256 + 60 * turn


async def test_it_stays_there_beside_others_also_through_a_gateway_that_is_new(pods: Pods) -> None:
    """By the number of sessions alone it would go to the other one."""
    said = _text(2, 600)
    home, answer, _ = await _turn(pods.grpc, pods, said)
    held = await _occupied(pods, home, 1)
    new = pods.start_gateway("gateway-new")
    for grpc in (pods.grpc, new.grpc):
        said = [*said, *answer, *_text(20, 40)]
        where, answer, cached = await _turn(grpc, pods, said)
        assert (where, cached >= 512) == (home, True)
    await asyncio.gather(*(session.let_go() for session in held))


async def test_a_hot_beginning_spreads_when_its_verifier_is_full(pods: Pods) -> None:
    beginning = _text(3, 400)
    home, _, _ = await _turn(pods.grpc, pods, [*beginning, 11])
    (other,) = [address for address in pods.verifiers if address != home]
    held = [Held(pods, [*beginning, 12, number]) for number in range(SEATS)]
    await asyncio.gather(*(session.began.wait() for session in held))
    assert _sessions(pods)[home] == SEATS
    where, _, cached = await _turn(pods.grpc, pods, [*beginning, 13])
    assert (where, cached) == (other, 0)
    where, _, cached = await _turn(pods.grpc, pods, [*beginning, 14])
    assert where == other
    assert cached >= 384
    await asyncio.gather(*(session.let_go() for session in held))
