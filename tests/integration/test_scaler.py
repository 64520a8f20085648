"""KEDA's protocol on a running fleet: idle, load, starvation, zero and back, for both tiers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import grpc
import pytest

from paceline.client import GatewayClient, Generation
from paceline.local.plan import HOST, choose_addresses
from tests.keda import Keda
from tests.pods import Pods
from tests.waiting import wait_until

# What a test waits for is the load's going up and down, and no time for its own sake.
WINDOWS = ("--scale-out-seconds", "1", "--scale-in-seconds", "4")
PLACES = 4
LONG = Generation(text="the quick brown fox", max_tokens=12_000, ignore_eos=True)


class World:
    """A fleet, and who asks how many pods it should have."""

    def __init__(self, pods: Pods, keda: Keda) -> None:
        self.pods = pods
        self.keda = keda
        self._running: list[asyncio.Task[None]] = []

    def begin(self, sessions: int) -> None:
        """So many sessions that last as long as the test lets them."""
        self._running += [asyncio.create_task(self._run(seed)) for seed in range(sessions)]

    async def end(self) -> None:
        """Their clients leave."""
        for task in self._running:
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)
        self._running.clear()

    async def _run(self, seed: int) -> None:
        async with GatewayClient(self.pods.grpc) as client:
            while True:
                async for _ in client.generate(replace(LONG, seed=seed)):
                    pass

    async def comes_to(self, tier: str, least: int, most: int | None = None) -> None:
        """Return when so many pods of a tier are recommended."""
        highest = least if most is None else most

        async def reached() -> bool:
            try:
                return least <= await self.keda.replicas(tier) <= highest
            except grpc.aio.AioRpcError as error:
                if error.code() is grpc.StatusCode.UNAVAILABLE:
                    # The gateway has not heard of its pods yet.
                    return False
                raise

        await wait_until(reached, f"{least} to {highest} {tier}s are recommended", 60)


@pytest.fixture(scope="module")
def port() -> int:
    return choose_addresses(http_port=0, grpc_port=0, verifiers=0, drafters=0).http_port


@pytest.fixture(scope="module")
def pods(
    tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, redis_url: str, port: int
) -> Iterator[Pods]:
    with Pods(
        tmp_path_factory.mktemp("scaler"),
        tiny_model,
        redis_url,
        verifier_flags=("--max-sessions", str(PLACES)),
        # One session each: the others that want trees have none.
        drafter_flags=("--max-sessions", "1"),
        gateway_flags=("--scaler-port", str(port), "--queue-seconds", "60", *WINDOWS),
    ) as made:
        yield made.start()


@asynccontextmanager
async def asking(pods: Pods, port: int) -> AsyncIterator[World]:
    async with grpc.aio.insecure_channel(f"{HOST}:{port}") as channel:
        world = World(pods, Keda(channel))
        try:
            yield world
        finally:
            await world.end()


async def test_both_tiers_through_idle_load_starvation_zero_and_back(pods: Pods, port: int) -> None:
    async with asking(pods, port) as world:
        # Idle: no drafter is of use, and one verifier is kept for whoever comes.
        await world.comes_to("drafter", 0)
        await world.comes_to("verifier", 1)
        assert not await world.keda.active("drafter")
        assert await world.keda.active("verifier")
        # As KEDA would do it.
        pods.pods[pods.drafter].stop()
        pushes = world.keda.pushes("drafter")
        assert not (await pushes.read()).result

        # Load: one session runs on without a drafter, and wants one.
        world.begin(1)
        assert (await pushes.read()).result
        assert await world.keda.replicas("drafter") == 1
        pods.launch_drafter(pods.drafter)
        await wait_until(lambda: pods.drafter_status().sessions == 1, "it is drafted for")
        assert await world.keda.replicas("verifier") == 1

        # Starvation: all places of the verifier are taken, and its drafter drafts for one session of them.
        world.begin(PLACES - 1)
        await world.comes_to("drafter", PLACES, PLACES + 1)
        assert await world.keda.active("drafter")

        # More sessions than there is room for wait at the gateway.
        world.begin(2 * PLACES)
        await world.comes_to("verifier", 3, 4)

        # Down to one and zero, and back.
        await world.end()
        assert not (await pushes.read()).result
        await world.comes_to("drafter", 0)
        await world.comes_to("verifier", 1)
        pods.pods[pods.drafter].stop()
        world.begin(1)
        assert (await pushes.read()).result
        await world.comes_to("drafter", 1)
        pushes.cancel()
    log = (pods.folder / "gateway.log").read_text()
    assert "another number of pods is recommended" in log
    assert "trees a second wanted" in log
    assert "sessions, of 4 places each" in log


async def test_a_gateway_knows_of_another_ones_queue(pods: Pods, port: int) -> None:
    """Whichever gateway KEDA asks, all that wait are counted."""
    other_port = choose_addresses(http_port=0, grpc_port=0, verifiers=0, drafters=0).http_port
    pods.add_gateway("gateway-b", "--scaler-port", str(other_port))
    async with asking(pods, port) as world, asking(pods, other_port) as other:
        world.begin(3 * PLACES)
        await world.comes_to("verifier", 3, 4)
        await other.comes_to("verifier", 3, 4)
