"""The recommendations of a fleet's pools, as whoever asks for them gets them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from prometheus_client import REGISTRY

from gateway.scaling.autoscaler import Autoscaler, TooManyPoolsError, UnknownLoadError
from gateway.scaling.observation import Tier
from gateway.scaling.policy import Policy
from tests.unit.gateway.scaling.fleets import FakeDrafter, FakeFleet, FakePod, FakeVerifier


@dataclass
class World:
    """A fleet whose time a test lets go on, second by second."""

    fleet: FakeFleet = field(default_factory=lambda: FakeFleet({"v": FakeVerifier()}))
    now: float = 0.0
    queued: float = 0.0

    def __post_init__(self) -> None:
        self.scaler = Autoscaler(
            self.fleet,
            Policy(out_seconds=5.0, in_seconds=30.0),
            queued=lambda: self.queued,
            seconds=1.0,
            clock=lambda: self.now,
        )

    def runs(self, seconds: int = 1, do: Callable[[], None] = lambda: None) -> None:
        for _ in range(seconds):
            self.now += 1.0
            do()
            self.scaler.look()

    def replicas(self, tier: Tier, pool: str = "default") -> int:
        return self.scaler.recommendation(tier, pool).replicas


def drafting(world: World) -> None:
    """A verifier that wants trees and, with a drafter, has them."""
    served = bool(world.fleet.drafters)
    for pod in world.fleet.verifiers.values():
        assert isinstance(pod, FakeVerifier)
        pod.goes_on(busy=1.0, sessions=4, steps=10, rows=40, wanted=40, missing=0 if served else 40)
    for pod in world.fleet.drafters.values():
        assert isinstance(pod, FakeDrafter)
        pod.goes_on(busy=0.1, sessions=4)


def idle(world: World) -> None:
    for pod in (*world.fleet.verifiers.values(), *world.fleet.drafters.values()):
        assert isinstance(pod, FakeVerifier | FakeDrafter)
        pod.goes_on()


async def test_nothing_is_said_before_the_pods_have_answered() -> None:
    world = World()
    world.fleet.drafters["d"] = silent = FakePod()
    with pytest.raises(UnknownLoadError, match="has answered"):
        world.replicas(Tier.VERIFIER)
    world.runs()
    with pytest.raises(UnknownLoadError):
        world.replicas(Tier.VERIFIER)
    silent.status = FakeDrafter().status
    world.runs()
    # What is there stays, until the load says otherwise.
    assert (world.replicas(Tier.VERIFIER), world.replicas(Tier.DRAFTER)) == (1, 1)


async def test_a_pod_that_never_answers_is_not_waited_for_for_long() -> None:
    world = World()
    world.fleet.verifiers["other"] = FakePod()
    world.runs(9)
    with pytest.raises(UnknownLoadError):
        world.replicas(Tier.VERIFIER)
    world.runs(1)
    assert world.replicas(Tier.VERIFIER) == 1


async def test_a_fleet_of_nobody_is_not_known_to_need_nobody() -> None:
    world = World(FakeFleet())
    world.runs(60)
    with pytest.raises(UnknownLoadError):
        world.replicas(Tier.DRAFTER)


async def test_drafters_come_with_sessions_and_go_after_them(capsys: pytest.CaptureFixture[str]) -> None:
    world = World()
    world.runs(40, lambda: idle(world))
    assert world.replicas(Tier.DRAFTER) == 0
    world.runs(1, lambda: drafting(world))
    assert world.replicas(Tier.DRAFTER) == 1
    world.fleet.drafters["d"] = FakeDrafter()
    world.runs(20, lambda: drafting(world))
    assert world.replicas(Tier.DRAFTER) == 1
    world.runs(60, lambda: idle(world))
    assert world.replicas(Tier.DRAFTER) == 0
    said = capsys.readouterr()
    lines = [line for line in (said.out + said.err).splitlines() if "number of pods" in line]
    assert len(lines) == 2
    assert "trees a second wanted" in lines[0]
    assert "no session runs" in lines[1]
    for name in ("recommended", "needed"):
        labels = {"tier": "drafter", "pool": "default"}
        assert REGISTRY.get_sample_value(f"paceline:{name}_replicas", labels) == 0


async def test_requests_that_wait_bring_a_verifier() -> None:
    world = World()
    world.runs(2, lambda: idle(world))
    world.queued = 100
    world.runs(6, lambda: idle(world))
    assert world.replicas(Tier.VERIFIER) > 1


async def test_a_stream_says_what_is_and_what_changes() -> None:
    world = World()
    world.runs(1, lambda: idle(world))
    stream = world.scaler.recommendations(Tier.DRAFTER, "default")
    assert (await anext(stream)).replicas == 0
    coming = asyncio.ensure_future(anext(stream))
    world.runs(2, lambda: idle(world))
    await asyncio.sleep(0)
    assert not coming.done()
    world.runs(1, lambda: drafting(world))
    assert (await coming).replicas == 1


async def test_a_pool_without_a_pod_is_followed_once_it_is_asked_for() -> None:
    world = World()
    world.runs(1, lambda: idle(world))
    assert world.replicas(Tier.DRAFTER, "gpu") == 0
    world.runs(1, lambda: drafting(world))
    assert world.replicas(Tier.DRAFTER, "gpu") == 1


async def test_names_of_pools_cannot_fill_the_memory() -> None:
    world = World()
    world.runs(1, lambda: idle(world))
    for number in range(64):
        world.replicas(Tier.DRAFTER, f"p{number}")
    with pytest.raises(TooManyPoolsError, match="64 pools of drafters"):
        world.replicas(Tier.DRAFTER, "p64")
    # The other tier has its own.
    assert world.replicas(Tier.VERIFIER) == 1
