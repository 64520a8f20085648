"""A fleet whose gateway finds it by the Kubernetes API: pods come and go, and the API server fails."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from tests.kubernetes.api_server import ApiServer
from tests.kubernetes.controllers import NAMESPACE, Controllers
from tests.kubernetes.validation import DELETION_COST
from tests.pods import Pods
from tests.streams import ASKED, Stream
from tests.waiting import wait_until

GRACE_SECONDS = 600


class Fleet:
    """Processes, and what Kubernetes says of them."""

    def __init__(self, pods: Pods, server: ApiServer) -> None:
        self.pods = pods
        self.server = server
        self.controllers = Controllers(server)

    def add(self, component: str, address: str) -> None:
        self.controllers.add(component, address)

    def ready(self) -> bool:
        return httpx.get(f"{self.pods.http}/readyz").status_code == 200

    def known(self) -> set[str]:
        """Addresses of what the gateway uses."""
        fleet = self.pods.gateways["gateway"].fleet()
        return {pod.address for pod in (*fleet.verifiers, *fleet.drafters) if pod.healthy}

    async def knows(self, *addresses: str) -> None:
        """Return when the gateway uses these and no others."""
        await wait_until(lambda: self.known() == set(addresses), f"{addresses} are used")

    def cost(self, component: str, address: str) -> str | None:
        """What Kubernetes has been told that losing a pod costs."""
        return self.controllers.annotations(component, address).get(DELETION_COST)

    def sessions(self, address: str) -> int:
        return self.pods.verifier_status(address).sessions

    async def truth(self, stream: Stream) -> list[int]:
        """What it is told when nothing happens."""
        return await Stream(self.pods, stream.asked).whole()


@pytest.fixture
def fleet(tmp_path: Path, tiny_model: Path, redis_url: str) -> Iterator[Fleet]:
    """Two verifiers and two drafters run; neither the gateway nor the API knows of them yet."""
    grace = ("--grace-seconds", str(GRACE_SECONDS))
    with (
        ApiServer() as server,
        Pods(tmp_path, tiny_model, redis_url, verifiers=2, drafters=2, verifier_flags=grace) as pods,
    ):
        kubeconfig = server.kubeconfig(tmp_path / "config", NAMESPACE)
        pods.discovery_flags = ("--discovery", "kubernetes", "--kubeconfig", str(kubeconfig))
        pods.discovery_flags += ("--deletion-cost-seconds", "0.2")
        made = Fleet(pods, server)
        pods.launch("gateway")
        for address in pods.drafters:
            pods.launch(address)
        for address in pods.verifiers:
            pods.start_verifier(address)
        yield made


async def test_pods_come_and_go_while_sessions_stream(fleet: Fleet) -> None:
    pods, (first, second), (one, other) = fleet.pods, fleet.pods.verifiers, fleet.pods.drafters
    await wait_until(lambda: "ready" in pods.pods["gateway"].log.read_text(), "the gateway serves")
    # There is nobody yet: who asks waits.
    assert not fleet.ready()
    early = Stream(pods)
    fleet.add("verifier", first)
    await early.comes_to(5)
    assert fleet.ready()

    # A drafter comes to it, and another one takes that one's place.
    fleet.add("drafter", one)
    await wait_until(lambda: pods.drafter_status(one).sessions == 1, "it is drafted for")
    fleet.add("drafter", other)
    fleet.controllers.stops("drafter", one)
    await wait_until(lambda: pods.drafter_status(other).sessions == 1, "the other drafts for it")
    await wait_until(lambda: pods.drafter_status(one).sessions == 0, "the first has been told")
    fleet.controllers.remove("drafter", one)
    await fleet.knows(first, other)

    # Its verifier is not ready for a while: it stays there, and nobody new comes.
    fleet.add("verifier", second)
    await fleet.knows(first, second, other)
    fleet.controllers.says("verifier", first, ready=False, serving=False, terminating=False)
    await fleet.knows(second, other)
    late = Stream(pods, replace(ASKED, seed=6))
    await late.comes_to(5)
    assert (fleet.sessions(first), fleet.sessions(second)) == (1, 1)
    fleet.controllers.says("verifier", first, ready=True)
    await fleet.knows(first, second, other)

    # The other one is being stopped, though its process has not heard of it: its session moves at once.
    fleet.controllers.stops("verifier", second)
    await wait_until(lambda: (fleet.sessions(first), fleet.sessions(second)) == (2, 0), "it has moved")
    pods.pods[second].terminate()
    await wait_until(lambda: not pods.pods[second].running, "it has ended")
    fleet.controllers.remove("verifier", second)
    await fleet.knows(first, other)
    for stream in (early, late):
        assert await stream.whole() == await fleet.truth(stream)
    log = pods.pods["gateway"].log.read_text()
    assert log.count("verifier is being stopped, moving the session") == 1
    assert "verifier lost" not in log


async def test_sessions_begin_run_and_move_while_the_api_server_is_away(fleet: Fleet) -> None:
    pods, (first, second), (one, other) = fleet.pods, fleet.pods.verifiers, fleet.pods.drafters
    for address in (first, second):
        fleet.add("verifier", address)
    fleet.add("drafter", one)
    await fleet.knows(first, second, one)
    running = Stream(pods)
    await running.comes_to(5)
    fleet.server.stop()
    begun = Stream(pods, replace(ASKED, seed=6))
    await begun.comes_to(5)
    # Nobody is told that this verifier dies.
    pods.pods[second].kill()
    moved = [await stream.whole() for stream in (running, begun)]

    # The server comes back, slow, without what there was, and knows of another drafter.
    fleet.server.objects.compact()
    fleet.server.faults.delay_seconds = 0.5
    fleet.server.start()
    fleet.controllers.remove("verifier", second)
    fleet.controllers.remove("drafter", one)
    fleet.add("drafter", other)
    await fleet.knows(first, other)
    assert moved == [await fleet.truth(stream) for stream in (running, begun)]


async def test_a_gateway_that_is_started_while_the_api_server_is_away_waits_for_it(fleet: Fleet) -> None:
    (first, _), gateway = fleet.pods.verifiers, fleet.pods.pods["gateway"]
    fleet.add("verifier", first)
    gateway.stop()
    fleet.server.stop()
    fleet.pods.launch("gateway")
    await wait_until(lambda: "tells nothing" in gateway.log.read_text(), "it has asked")
    assert not fleet.ready()
    fleet.server.start()
    await wait_until(fleet.ready, "it serves")


async def test_idle_pods_are_the_first_to_go_whichever_gateway_says_so(fleet: Fleet) -> None:
    pods, (first, second), (one, other) = fleet.pods, fleet.pods.verifiers, fleet.pods.drafters
    for address in (first, second):
        fleet.add("verifier", address)
    for address in (one, other):
        fleet.add("drafter", address)
    await fleet.knows(first, second, one, other)
    pods.add_gateway("gateway-2")
    await wait_until(lambda: fleet.cost("verifier", first) == fleet.cost("verifier", second) == "0", "idle")

    # All by one gateway, two each: what a pod says of itself counts, not what a gateway knows of its own.
    streams = [Stream(pods, replace(ASKED, seed=seed)) for seed in range(3)]
    for stream in streams:
        await stream.comes_to(1)
    busy, idle = (first, second) if fleet.sessions(first) == 2 else (second, first)
    await wait_until(
        lambda: (fleet.cost("verifier", busy), fleet.cost("verifier", idle)) == ("2", "1"), "they are ranked"
    )
    drafted = {address: pods.drafter_status(address).sessions for address in (one, other)}
    await wait_until(
        lambda: all(fleet.cost("drafter", address) == str(drafted[address]) for address in drafted),
        "drafters, too",
    )
    for stream in streams:
        await stream.whole()
    for component, address in (
        ("verifier", first),
        ("verifier", second),
        ("drafter", one),
        ("drafter", other),
    ):
        await wait_until(lambda at=(component, address): fleet.cost(*at) == "0", "it is idle again")
    # Nobody writes what has been written, except now and then: two gateways make some ten rounds in this
    # second and write all four pods in one round of twenty. Six such rounds come less than twice in 100,000
    # runs; without a memory it would be all ten, 40 writes.
    written = fleet.server.objects.version
    patches = fleet.server.count("patch", "pods")
    await asyncio.sleep(1)
    assert fleet.server.objects.version == written
    assert fleet.server.count("patch", "pods") - patches < 24
