"""KEDA's part done for real: verifiers and drafters are started and stopped as a gateway recommends it."""

from __future__ import annotations

import asyncio
import itertools
import math
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from pathlib import Path

import grpc
import httpx
import pytest

from paceline.client import Chunk, Finished, GatewayClient, Generation
from paceline.local.plan import HOST, choose_addresses
from tests.keda import Keda
from tests.kubernetes.api_server import ApiServer
from tests.kubernetes.controllers import NAMESPACE, Controllers
from tests.pods import Pods
from tests.waiting import wait_until

VERIFIERS, DRAFTERS = 3, 2
# A verifier's places: three are too few for ten clients.
PLACES = 4
CLIENTS = 10
# What a client may wait until a fleet has grown, and shrunk.
SECONDS = 120.0
IN_SECONDS = 10.0
WINDOWS = ("--scale-out-seconds", "2", "--scale-in-seconds", str(IN_SECONDS))


class Scaled:
    """The pods of one tier, of which as many run as KEDA and its HPA come to."""

    def __init__(
        self, tier: str, addresses: tuple[str, ...], least: int, pods: Pods, controllers: Controllers
    ) -> None:
        self.tier = tier
        self.running: list[str] = []
        # When pods were last started, and the shortest time from there until one was stopped.
        self.started = 0.0
        self.shortest = math.inf
        self._addresses = addresses
        self._least = least
        self._pods = pods
        self._controllers = controllers
        self._busy: set[asyncio.Task[None]] = set()

    async def keep(self, keda: Keda) -> None:
        """Do as KEDA does, for ever."""
        while True:
            for task in [task for task in self._busy if task.done()]:
                self._busy.remove(task)
                await task
            with suppress(grpc.aio.AioRpcError):
                desired = await keda.desired(
                    self.tier, len(self.running), least=self._least, most=len(self._addresses)
                )
                await self.come_to(desired)
            await asyncio.sleep(0.5)

    async def close(self) -> None:
        for task in self._busy:
            task.cancel()
        await asyncio.gather(*self._busy, return_exceptions=True)

    async def come_to(self, desired: int) -> None:
        """Start or stop so many that `desired` run."""
        for _ in range(len(self.running), desired):
            free = [
                address
                for address in self._addresses
                if address not in self._pods.pods or not self._pods.pods[address].running
            ]
            if not free:
                return
            self.started = time.monotonic()
            self.running.append(free[0])
            self._pods.launch(free[0])
            self._busy.add(asyncio.create_task(self._until_it_serves(free[0])))
        for _ in range(desired, len(self.running)):
            address = self.running.pop()
            self.shortest = min(self.shortest, time.monotonic() - self.started)
            self._busy.add(asyncio.create_task(self._stop(address)))

    async def _until_it_serves(self, address: str) -> None:
        await wait_until(lambda: asyncio.to_thread(self._pods.serving, address), f"{address} serves", 60)
        if address in self.running:
            self._controllers.add(self.tier, address)

    async def _stop(self, address: str) -> None:
        """As Kubernetes does it: the endpoint terminates, the process gets SIGTERM and has its grace."""
        with suppress(Exception):
            self._controllers.stops(self.tier, address)
        pod = self._pods.pods[address]
        pod.terminate()
        await wait_until(lambda: not pod.running, f"{address} ends", 60)
        assert pod.exit_code == 0
        with suppress(Exception):
            self._controllers.remove(self.tier, address)


class Clients:
    """So many clients as the test wants, each asking again and again; an error of one fails the test."""

    def __init__(self, pods: Pods) -> None:
        self.served = 0
        self._pods = pods
        self._texts: dict[int, tuple[int, ...]] = {}
        self._numbers = itertools.count()
        self._wanted = 0
        self._tasks: set[asyncio.Task[None]] = set()

    async def are(self, count: int) -> None:
        """Let so many ask; further ones come to the end of what they are at."""
        self._wanted = count
        for number in range(len(self._tasks), count):
            self._tasks.add(asyncio.create_task(self._ask(number)))
        self._tasks = {task for task in self._tasks if not task.done() or task.result()}
        while len(self._tasks) > count:
            await asyncio.wait(self._tasks, return_when=asyncio.FIRST_COMPLETED)
            self._tasks = {task for task in self._tasks if not task.done() or task.result()}

    def check(self) -> None:
        """Raise what a client had to hear."""
        for task in self._tasks:
            if task.done():
                task.result()

    async def _ask(self, number: int) -> None:
        async with GatewayClient(self._pods.grpc, resume_s=0) as client:
            while number < self._wanted:
                seed = next(self._numbers) % 8
                asked = Generation(text="the quick brown fox", max_tokens=600, temperature=0.8, seed=seed)
                events = [event async for event in client.generate(asked, timeout_s=SECONDS)]
                assert isinstance(events[-1], Finished)
                ids = tuple(
                    token for event in events if isinstance(event, Chunk) for token in event.token_ids
                )
                # The text is the same wherever it was computed, drafted or not.
                assert self._texts.setdefault(seed, ids) == ids
                self.served += 1


class World:
    """The fleet, its clients, and KEDA."""

    def __init__(self, clients: Clients, verifiers: Scaled, drafters: Scaled) -> None:
        self.clients = clients
        self.verifiers = verifiers
        self.drafters = drafters
        self.keeping: list[asyncio.Task[None]] = []

    async def until(self, reached: Callable[[], bool], what: str) -> None:
        """Return when it is so; whatever fails meanwhile fails the test."""

        def looked() -> bool:
            self.clients.check()
            for task in self.keeping:
                if task.done():
                    task.result()
            return reached()

        await wait_until(looked, what, SECONDS)


@pytest.fixture
def pods(tmp_path: Path, tiny_model: Path, redis_url: str) -> Iterator[tuple[Pods, Controllers, int]]:
    port = choose_addresses(http_port=0, grpc_port=0, verifiers=0, drafters=0).http_port
    with (
        ApiServer() as server,
        Pods(
            tmp_path,
            tiny_model,
            redis_url,
            verifiers=VERIFIERS,
            drafters=DRAFTERS,
            verifier_flags=("--max-sessions", str(PLACES), "--grace-seconds", "60"),
            gateway_flags=("--scaler-port", str(port), "--queue-seconds", "60", *WINDOWS),
        ) as made,
    ):
        kubeconfig = server.kubeconfig(tmp_path / "config", NAMESPACE)
        made.discovery_flags = ("--discovery", "kubernetes", "--kubeconfig", str(kubeconfig))
        yield made, Controllers(server), port


def ready(pods: Pods) -> bool:
    """Whether a request would be served now."""
    try:
        return httpx.get(f"{pods.http}/readyz").status_code == 200
    except httpx.TransportError:
        return False


@pytest.fixture
async def world(pods: tuple[Pods, Controllers, int]) -> AsyncIterator[World]:
    fleet, controllers, port = pods
    verifiers = Scaled("verifier", fleet.verifiers, 1, fleet, controllers)
    drafters = Scaled("drafter", fleet.drafters, 0, fleet, controllers)
    made = World(Clients(fleet), verifiers, drafters)
    fleet.launch("gateway")
    await verifiers.come_to(1)
    await wait_until(lambda: asyncio.to_thread(ready, fleet), "the fleet serves", SECONDS)
    async with grpc.aio.insecure_channel(f"{HOST}:{port}") as channel:
        made.keeping = [asyncio.create_task(tier.keep(Keda(channel))) for tier in (verifiers, drafters)]
        try:
            yield made
        finally:
            for task in made.keeping:
                task.cancel()
            await asyncio.gather(*made.keeping, return_exceptions=True)
            await verifiers.close()
            await drafters.close()


@pytest.mark.long(reason="starts and stops pods with the load, up and down twice")
async def test_the_fleet_follows_the_load_and_no_client_notices(
    world: World, pytestconfig: pytest.Config
) -> None:
    clients, verifiers, drafters = world.clients, world.verifiers, world.drafters
    end = time.monotonic() + 60 * float(pytestconfig.getoption("--scale-minutes"))
    rounds = 0
    while rounds < 2 or time.monotonic() < end:
        rounds += 1
        # One client: a drafter comes from nothing.
        await clients.are(1)
        await world.until(lambda: len(drafters.running) == 1, "one drafter runs")
        assert len(verifiers.running) == 1
        # Many: what there is is not enough.
        await clients.are(CLIENTS)
        await world.until(lambda: len(verifiers.running) == VERIFIERS, "all verifiers run")
        # Few, then none: one verifier is kept, and drafting ends.
        await clients.are(1)
        await world.until(lambda: len(verifiers.running) == 1, "one verifier is left")
        await clients.are(0)
        await world.until(lambda: not drafters.running, "no drafter is left")
        clients.check()
    assert clients.served > CLIENTS
    # What was started was kept for the window, less what KEDA was late in starting it.
    for tier in (verifiers, drafters):
        assert IN_SECONDS / 2 < tier.shortest < math.inf
