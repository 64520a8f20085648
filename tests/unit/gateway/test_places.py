"""Places at verifiers and at the gateway: who gets one, who waits, and what is known of who is there."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.discovery import Endpoints
from gateway.errors import OVERLOADED, UNAVAILABLE, RequestError
from gateway.fleet import Fleet
from gateway.places import Places
from gateway.routing.texts import RoutedText
from paceline.v1 import verifier_pb2
from tests.waiting import wait_until

MODEL = "m"
SOON = 1e9
TEXT = RoutedText([1, 2, 3])


class World:
    """Two verifiers that nothing is sent to, and the places there."""

    def __init__(self, *, places: int = 2, here: int = 99, waiting: int = 999, queue: float = 60.0) -> None:
        self.places = places
        self.fleet = Fleet(1.0)
        self.fleet.update(Endpoints.at(("a:1", "b:1")))
        self.door = Places(
            self.fleet,
            model_id=MODEL,
            max_sessions=here,
            max_waiting=waiting,
            queue_seconds=queue,
            retry_seconds=lambda ahead, places: 7.0,
        )
        self.order: list[str] = []
        self.requests: list[Request] = []

    def status(self, address: str, sessions: int = 0, **changes: Any) -> None:
        """Have a verifier tell of itself."""
        pod = self.fleet.verifiers[address]
        pod.asking()
        fields: dict[str, Any] = {"model_id": MODEL, "max_sessions": self.places, **changes}
        pod.heard(verifier_pb2.VerifierStatusResponse(sessions=sessions, **fields))
        self.door.give_out()

    def ask(self, holder: str = "k", name: str = "", *, begun: bool = False) -> Request:
        made = Request(self, holder, name or f"{holder}{len(self.requests)}", begun=begun)
        self.requests.append(made)
        return made

    async def close(self) -> None:
        for request in self.requests:
            request.task.cancel()
        await asyncio.gather(*(request.task for request in self.requests), return_exceptions=True)
        await self.fleet.close()


class Request:
    """A session that takes a place and keeps it until it is told to leave."""

    def __init__(self, world: World, holder: str, name: str, *, begun: bool) -> None:
        self.holder = holder
        self.name = name
        self.begun = begun
        self.address = ""
        self.leaving = asyncio.Event()
        self.task = asyncio.create_task(self._run(world, begun))

    async def _run(self, world: World, begun: bool) -> None:
        with world.door.seat(self.holder, begun=begun) as seat:
            self.address = (await seat.verifier(TEXT, (), SOON)).address
            world.order.append(self.name)
            await self.leaving.wait()
        self.address = ""

    async def leave(self) -> None:
        self.leaving.set()
        await self.task


async def settled() -> None:
    """Let everything that can go on go on."""
    for _ in range(8):
        await asyncio.sleep(0)


async def test_places_are_free_as_soon_as_sessions_end_whenever_the_status_comes() -> None:
    world = World(places=1)
    world.status("a:1")
    for _ in range(50):
        request = world.ask()
        await settled()
        assert request.address == "a:1"
        await request.leave()
    await world.close()


async def test_sessions_of_others_are_counted_and_ours_not_twice() -> None:
    world = World(places=4)
    world.status("a:1", sessions=1)
    requests = [world.ask() for _ in range(4)]
    await settled()
    assert [bool(request.address) for request in requests] == [True, True, True, False]
    # It tells of ours, too; another gateway's has ended.
    world.status("a:1", sessions=3)
    await settled()
    assert requests[3].address
    assert world.fleet.verifiers["a:1"].sessions == 4
    await world.close()


async def test_a_verifier_that_turns_a_session_away_is_full_until_something_changes() -> None:
    world = World(places=4)
    world.status("a:1")
    pod = world.fleet.verifiers["a:1"]
    mine = world.ask()
    await settled()
    with world.door.seat("k") as seat:
        await seat.verifier(TEXT, (), SOON)
        seat.leave()
        seat.turned_away(pod)
        waiting = asyncio.create_task(seat.verifier(TEXT, (), SOON))
        later = world.ask()
        await settled()
        assert not waiting.done()
        assert pod.sessions == 4
        await mine.leave()
        await waiting
        assert not later.address
    await world.close()


async def test_those_that_must_move_go_before_those_that_are_new() -> None:
    world = World(places=1)
    world.status("a:1")
    first = world.ask("a", "running")
    await settled()
    for holder, name, begun in [("b", "new", False), ("c", "moves", True), ("b", "moves too", True)]:
        world.ask(holder, name, begun=begun)
        await settled()
    await first.leave()
    for request in world.requests[1:]:
        request.leaving.set()
    await wait_until(lambda: len(world.order) == 4, "all have had their turn")
    assert world.order == ["running", "moves", "moves too", "new"]
    await world.close()


async def test_the_gateways_own_places_are_given_in_the_same_line() -> None:
    world = World(places=9, here=1)
    world.status("a:1")
    first = world.ask("a")
    for name in ("a1", "a2"):
        world.ask("a", name)
    world.ask("b", "b1")
    await settled()
    assert world.door.running == 1
    for request in world.requests:
        request.leaving.set()
    await wait_until(lambda: len(world.order) == 4, "all have had their turn")
    assert world.order == [first.name, "a1", "b1", "a2"] or world.order == [first.name, "b1", "a1", "a2"]
    await world.close()


@pytest.mark.parametrize("begun", [False, True])
async def test_one_that_gives_up_leaves_nothing_behind(begun: bool) -> None:
    world = World(places=1)
    world.status("a:1")
    first, second = world.ask(), world.ask(begun=begun)
    await settled()
    second.task.cancel()
    await settled()
    await first.leave()
    third = world.ask()
    await settled()
    assert third.address
    assert world.door.running == 1
    await world.close()


async def test_who_waits_too_long_is_told_when_to_come_again() -> None:
    world = World(places=1, queue=0.05)
    world.status("a:1")
    world.ask()
    await settled()
    with pytest.raises(RequestError, match=r"none was free within 0\.05 seconds") as caught:
        await world.ask().task
    assert (caught.value.kind, caught.value.retry_after) == (OVERLOADED, 7.0)
    await world.close()


async def test_where_no_verifier_is_up_requests_wait_until_their_deadline() -> None:
    world = World(queue=0.0)
    with world.door.seat("k") as seat:
        with pytest.raises(RequestError) as caught:
            await seat.verifier(TEXT, (), asyncio.get_running_loop().time() + 0.1)
        assert caught.value.kind is UNAVAILABLE
        waiting = asyncio.create_task(seat.verifier(TEXT, (), SOON))
        await settled()
        world.status("b:1")
        assert (await waiting).address == "b:1"
    await world.close()


async def test_one_keys_crowd_leaves_room_for_another_key_in_the_line() -> None:
    world = World(places=1, waiting=8)
    world.status("a:1")
    requests = [world.ask("crowd") for _ in range(20)]
    await settled()
    refused = [request for request in requests if request.task.done()]
    # One runs, and four wait: half of the room.
    assert len(refused) == 15
    assert all(isinstance(request.task.exception(), RequestError) for request in refused)
    other = world.ask("other")
    await settled()
    assert not other.task.done()
    await requests[0].leave()
    other.leaving.set()
    for request in requests[1:5]:
        request.leaving.set()
    await wait_until(lambda: len(world.order) == 6, "all have had their turn")
    assert world.order.index(other.name) <= 2
    await world.close()


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("ask"), st.sampled_from("xyz"), st.booleans()),
        st.tuples(st.just("leave"), st.integers(0, 9), st.just(False)),
        st.tuples(st.just("give up"), st.integers(0, 9), st.just(False)),
        st.tuples(st.sampled_from(["a:1", "b:1"]), st.integers(0, 4), st.booleans()),
    ),
    max_size=40,
)


@settings(deadline=None, max_examples=150)
@given(STEPS)
def test_no_place_is_given_twice_and_none_is_left_while_somebody_waits(
    steps: list[tuple[str, Any, bool]],
) -> None:
    asyncio.run(play(steps))


async def play(steps: list[tuple[str, Any, bool]]) -> None:
    world = World(places=3, here=4)
    for step, what, flag in steps:
        live = [request for request in world.requests if not request.task.done()]
        running = [request for request in live if request.address]
        if step == "ask":
            world.ask(what, begun=flag)
        elif step == "leave" and running:
            await running[what % len(running)].leave()
        elif step == "give up" and live:
            live[what % len(live)].task.cancel()
        elif step in world.fleet.verifiers:
            pod = world.fleet.verifiers[step]
            known = pod.ours + min(what, max(0, 3 - pod.ours))
            world.status(step, sessions=known, draining=flag)
        await settled()
        check(world)
    await world.close()
    assert world.door.running == 0
    assert all(pod.ours == 0 for pod in world.fleet.verifiers.values())


def check(world: World) -> None:
    live = [request for request in world.requests if not request.task.done()]
    running, waiting = [r for r in live if r.address], [r for r in live if not r.address]
    for address, pod in world.fleet.verifiers.items():
        assert pod.ours == sum(request.address == address for request in running)
        assert pod.ours <= 3
    assert world.door.running == len(running)
    able = [
        pod for pod in world.fleet.verifier_views() if not pod.draining and pod.sessions < pod.max_sessions
    ]
    if able and waiting:
        assert not any(request.begun for request in waiting)
        assert len(running) >= 4
    # Of one holder, the earlier are in before the later.
    for begun in (False, True):
        for holder in "xyz":
            arrived = [r.name for r in world.requests if (r.holder, r.begun) == (holder, begun)]
            let_in = [name for name in world.order if name in arrived]
            assert let_in == [name for name in arrived if name in let_in]


async def test_a_session_keeps_its_place_until_another_verifier_has_one_for_it() -> None:
    world = World(places=1)
    world.status("a:1")
    with world.door.seat("k") as seat:
        assert (await seat.verifier(TEXT, (), SOON)).address == "a:1"
        world.status("a:1", sessions=1, draining=True)
        assert not seat.has_another(TEXT, ())
        # It goes before one that is new.
        new = world.ask()
        await settled()
        world.status("b:1")
        await settled()
        assert seat.has_another(TEXT, ())
        assert not new.address
        assert (world.fleet.verifiers["a:1"].ours, world.fleet.verifiers["b:1"].ours) == (1, 1)
        seat.leave_verifier()
        assert (await seat.verifier(TEXT, (), SOON)).address == "b:1"
        assert (world.fleet.verifiers["a:1"].ours, world.fleet.verifiers["b:1"].ours) == (0, 1)
    await settled()
    assert world.order == [new.name]
    await world.close()


@pytest.mark.parametrize("given", [False, True])
async def test_a_session_that_ends_gives_up_the_place_that_it_would_have_moved_to(given: bool) -> None:
    world = World(places=1)
    world.status("a:1")
    with world.door.seat("k") as seat:
        await seat.verifier(TEXT, (), SOON)
        world.status("a:1", sessions=1, draining=True)
        if given:
            world.status("b:1")
        assert seat.has_another(TEXT, ()) == given
    assert [pod.ours for pod in world.fleet.verifiers.values()] == [0, 0]
    world.status("b:1")
    request = world.ask()
    await settled()
    assert request.address == "b:1"
    await world.close()
