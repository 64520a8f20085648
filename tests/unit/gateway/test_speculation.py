"""A session's drafter is replaced where its verifier does not listen to it; real calls, scripted pods."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

import grpc
import pytest
from opentelemetry.trace import INVALID_SPAN

from gateway.discovery import Endpoints, StaticDiscovery
from gateway.fleet import Fleet
from gateway.generation import Generation
from gateway.speculation import Speculation
from paceline.net import rpc
from paceline.sampling import SamplingParams
from paceline.service.tasks import cancel_and_wait
from paceline.session import MAX_PREDICTION_IDS, SessionKey
from paceline.v1 import verifier_pb2, verifier_pb2_grpc
from tests.scripted_drafter import ScriptedDrafter, scripted_drafter
from tests.waiting import wait_until

POLL_SECONDS = 0.05


class Verifier(verifier_pb2_grpc.VerifierServiceServicer):
    """Tells of a drafter of the name that all of them have."""

    async def Status(
        self, request: verifier_pb2.VerifierStatusRequest, context: object
    ) -> verifier_pb2.VerifierStatusResponse:
        return verifier_pb2.VerifierStatusResponse(drafters_aside=["d", "d (another)"])


@dataclass
class World:
    """Two drafters of one name, and a session that is drafted for at a verifier."""

    speculation: Speculation
    fleet: Fleet
    # Their addresses, in the order in which the gateway tries them.
    addresses: list[str]
    # The one that has the session at first, and the other.
    first: ScriptedDrafter
    second: ScriptedDrafter

    async def has_been_looked_after(self) -> None:
        """Return when the gateway has had occasion enough to replace a drafter."""
        asked = self.first.asked
        await wait_until(lambda: self.first.asked > asked + 4, "the drafters have been asked")


@asynccontextmanager
async def world(*, first_connects: bool, prediction_ids: tuple[int, ...] = ()) -> AsyncIterator[World]:
    async with AsyncExitStack() as stack:
        server = await rpc.start_server(
            lambda server: verifier_pb2_grpc.add_VerifierServiceServicer_to_server(Verifier(), server),
            services=[],
            host="127.0.0.1",
            port=0,
        )
        stack.push_async_callback(server.stop, 0)
        verifier = server.address
        drafters = [await stack.enter_async_context(scripted_drafter()) for _ in range(2)]
        by_address = {address: drafter for drafter, address in drafters}
        # The gateway tries the first address first.
        first, second = (by_address[address] for address in sorted(by_address))
        first.verifiers, second.verifiers = [verifier] * first_connects, [verifier]
        fleet = Fleet(POLL_SECONDS)
        fleet.start(StaticDiscovery(Endpoints.at((verifier,), tuple(by_address))))
        stack.push_async_callback(fleet.close)
        await wait_until(lambda: len(fleet.drafter_views()) == 2, "both are seen")
        speculation = Speculation(
            fleet,
            SessionKey("s", 1),
            Generation("m", (1, 2), SamplingParams(max_tokens=9), prediction_ids=prediction_ids),
            "",
            verifier,
            lambda: [1, 2],
            POLL_SECONDS,
            INVALID_SPAN,
        )
        running = asyncio.create_task(speculation.run())
        try:
            await wait_until(lambda: bool(first.sessions), "it is attached")
            yield World(speculation, fleet, sorted(by_address), first, second)
        finally:
            await cancel_and_wait(running)


async def test_one_that_its_verifier_puts_aside_is_replaced_at_once() -> None:
    async with world(first_connects=True) as made:
        made.speculation.put_aside(60)
        await wait_until(lambda: bool(made.second.sessions), "the other has it")
        assert not made.first.sessions
        # What the verifier says so soon may still be of the first.
        made.speculation.put_aside(60)
        await made.has_been_looked_after()
        assert made.second.sessions
        assert (len(made.first.attached), len(made.second.attached)) == (1, 1)


async def test_names_that_a_verifier_tells_decide_nothing() -> None:
    async with world(first_connects=True) as made:
        await made.has_been_looked_after()
        assert made.first.sessions
        assert not made.second.attached


@pytest.mark.parametrize("connects", [False, True])
async def test_one_that_is_not_connected_to_the_verifier_is_replaced(connects: bool) -> None:
    async with world(first_connects=connects) as made:
        if connects:
            made.first.verifiers.clear()
        await wait_until(lambda: bool(made.second.sessions), "the other has it")
        assert not made.first.sessions


async def test_a_removed_one_is_replaced_and_let_go() -> None:
    async with world(first_connects=True) as made:
        first, second = made.addresses
        pod = made.fleet.drafters[first]
        made.fleet.update(Endpoints.at(tuple(made.fleet.verifiers), (second,)))
        await wait_until(lambda: bool(made.second.sessions), "the other has it")
        await wait_until(lambda: not made.first.sessions, "the first has been told")
        await wait_until(
            lambda: pod.channel.get_state() is grpc.ChannelConnectivity.SHUTDOWN, "the first is let go"
        )
        assert made.fleet.drafters[second].ours == 1


async def test_a_session_without_a_drafter_gets_the_first_that_comes() -> None:
    async with world(first_connects=True) as made:
        _, second = made.addresses
        verifiers = tuple(made.fleet.verifiers)
        made.fleet.update(Endpoints.at(verifiers))
        await wait_until(lambda: not made.first.sessions, "it has none")
        made.fleet.update(Endpoints.at(verifiers, (second,)))
        await wait_until(lambda: bool(made.second.sessions), "it has one again")
        assert not made.first.sessions


async def test_of_a_prediction_a_drafter_gets_as_much_as_it_takes() -> None:
    ids = tuple(range(MAX_PREDICTION_IDS + 5))
    async with world(first_connects=True, prediction_ids=ids) as made:
        assert tuple(made.first.attached[0].prediction_ids) == ids[:MAX_PREDICTION_IDS]


async def test_what_steps_accept_is_to_the_credit_of_the_drafter_that_was_attached() -> None:
    async with world(first_connects=True) as made:
        first, second = made.addresses
        # Others get one token of each step there.
        made.fleet.benefits.add("other", next(iter(made.fleet.verifiers)), steps=32, accepted=32)
        for _ in range(32):
            made.speculation.stepped(accepted=3)
        made.speculation.put_aside(60)
        await wait_until(lambda: bool(made.second.sessions), "the other has it")
        for _ in range(32):
            made.speculation.stepped(accepted=0)
    good, poor = made.fleet.benefits.of(first), made.fleet.benefits.of(second)
    assert good is not None
    assert poor is not None
    assert good.mean > 1 > -1 > poor.mean
