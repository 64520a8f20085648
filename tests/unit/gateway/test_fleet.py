"""What a gateway makes of its verifiers' statuses, told by a real server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import grpc
import pytest

from gateway.discovery import Endpoint, Endpoints, StaticDiscovery
from gateway.errors import RequestError
from gateway.fleet import Fleet
from gateway.request import served_model
from gateway.routing.texts import RoutedText
from gateway.routing.verifiers import choose_verifier
from paceline.net.handshake import Served
from paceline.net.rpc import start_server
from paceline.v1 import verifier_pb2, verifier_pb2_grpc
from tests.waiting import wait_until

PROMPT = RoutedText([1, 2, 3])


class Verifier(verifier_pb2_grpc.VerifierServiceServicer):
    """Says what it is told to say of itself."""

    def __init__(self) -> None:
        self.says: dict[str, Any] = {"model_id": "tiny", "vocab_fingerprint": "ours"}

    async def Status(
        self, request: verifier_pb2.VerifierStatusRequest, context: object
    ) -> verifier_pb2.VerifierStatusResponse:
        return verifier_pb2.VerifierStatusResponse(max_sessions=1, vocab_size=9, **self.says)


@pytest.fixture
def verifier() -> Verifier:
    return Verifier()


@pytest.fixture
async def fleet(verifier: Verifier) -> AsyncIterator[Fleet]:
    server = await start_server(
        lambda server: verifier_pb2_grpc.add_VerifierServiceServicer_to_server(verifier, server),
        services=[],
        host="127.0.0.1",
        port=0,
    )
    fleet = Fleet(0.01, served=Served("tiny", "ours"))
    fleet.start(StaticDiscovery(Endpoints.at((server.address,))))
    yield fleet
    await fleet.close()
    await server.stop(0)


async def test_a_verifier_of_the_same_model_is_routed_to(fleet: Fleet) -> None:
    assert fleet.not_ready() == "no verifier is up"
    await wait_until(lambda: fleet.not_ready() == "", "the verifier is up")
    assert choose_verifier(fleet.verifier_views(), "tiny", PROMPT) is not None
    assert served_model(fleet.verifier_views(), "tiny", "").vocab_size == 9


@pytest.mark.parametrize(
    ("says", "why"),
    [
        (
            {"model_id": "large", "vocab_fingerprint": "ours"},
            "a verifier serves 'large' and this gateway 'tiny': give both the same --model-name",
        ),
        (
            {"model_id": "tiny", "vocab_fingerprint": "theirs"},
            "a verifier's vocabulary of 'tiny' (theirs) is not this gateway's (ours): "
            "give both the same --model",
        ),
        (
            {"model_id": "tiny"},
            "a verifier's vocabulary of 'tiny' (unknown) is not this gateway's (ours): "
            "give both the same --model",
        ),
    ],
)
async def test_a_verifier_of_another_model_gets_nothing_and_is_told_of(
    fleet: Fleet, verifier: Verifier, capsys: pytest.CaptureFixture[str], says: dict[str, str], why: str
) -> None:
    ours, verifier.says = verifier.says, says
    await wait_until(lambda: bool(fleet.verifier_views()), "the verifier has answered")
    assert fleet.not_ready() == why
    assert choose_verifier(fleet.verifier_views(), "tiny", PROMPT) is None
    with pytest.raises(RequestError, match="no verifier of 'tiny' is up"):
        served_model(fleet.verifier_views(), "tiny", "")
    (pod,) = fleet.to_proto(0).verifiers
    assert pod.misfit == why
    # It is started anew with what fits.
    verifier.says = ours
    await wait_until(lambda: fleet.not_ready() == "", "the verifier fits")
    assert choose_verifier(fleet.verifier_views(), "tiny", PROMPT) is not None
    said = capsys.readouterr()
    assert (said.out + said.err).count("verifier gets no sessions") == 1


class ToldDiscovery:
    """Has found what its test tells it."""

    def __init__(self) -> None:
        self.found: asyncio.Queue[Endpoints] = asyncio.Queue()

    async def endpoints(self) -> AsyncGenerator[Endpoints, None]:
        while True:
            yield await self.found.get()


@asynccontextmanager
async def verifiers(count: int) -> AsyncIterator[list[str]]:
    """Addresses of so many that serve."""
    async with AsyncExitStack() as stack:
        addresses = []
        for _ in range(count):
            server = await start_server(
                lambda server: verifier_pb2_grpc.add_VerifierServiceServicer_to_server(Verifier(), server),
                services=[],
                host="127.0.0.1",
                port=0,
            )
            stack.push_async_callback(server.stop, 0)
            addresses.append(server.address)
        yield addresses


async def test_a_fleet_begins_empty_and_serves_when_a_pod_is_found() -> None:
    discovery = ToldDiscovery()
    fleet = Fleet(0.01)
    heard: list[str] = []
    fleet.on_change(lambda: heard.append(fleet.not_ready()))
    fleet.start(discovery)
    discovery.found.put_nowait(Endpoints())
    try:
        await wait_until(lambda: heard == ["no verifier is up"], "the empty set is taken")
        async with verifiers(1) as (address,):
            discovery.found.put_nowait(Endpoints.at((address,)))
            await wait_until(lambda: fleet.not_ready() == "", "the verifier is up")
            assert heard[-1] == ""
    finally:
        await fleet.close()


async def test_a_removed_pod_gets_nothing_new_and_is_let_go_with_its_last_session() -> None:
    async with verifiers(2) as (first, second):
        fleet = Fleet(0.01)
        fleet.start(StaticDiscovery(Endpoints.at((first, second))))
        try:
            await wait_until(lambda: len(fleet.verifier_views()) == 2, "both are seen")
            kept, held = fleet.verifiers[second], fleet.verifiers[first]
            held.begin()
            fleet.update(Endpoints.at((second,)))
            assert [view.address for view in fleet.verifier_views()] == [second]
            assert fleet.verifiers[second] is kept
            # Its session goes on there, by the same channel, and it is still watched.
            held.lost("for a moment")
            await wait_until(lambda: held.healthy, "it is asked on")
            await verifier_pb2_grpc.VerifierServiceStub(held.channel).Status(
                verifier_pb2.VerifierStatusRequest()
            )
            held.end()
            await wait_until(
                lambda: held.channel.get_state() is grpc.ChannelConnectivity.SHUTDOWN, "it is let go"
            )
        finally:
            await fleet.close()
    assert kept.channel.get_state() is grpc.ChannelConnectivity.SHUTDOWN


async def test_one_that_comes_back_is_a_new_one() -> None:
    async with verifiers(1) as (address,):
        fleet = Fleet(0.01)
        fleet.start(StaticDiscovery(Endpoints.at((address,))))
        try:
            await wait_until(lambda: fleet.not_ready() == "", "it is up")
            before = fleet.verifiers[address]
            before.begin()
            fleet.update(Endpoints())
            assert fleet.not_ready() == "no verifier is up"
            fleet.update(Endpoints.at((address,)))
            await wait_until(lambda: fleet.not_ready() == "", "it is up again")
            assert (before.ours, fleet.verifiers[address].ours) == (1, 0)
            before.end()
            await wait_until(
                lambda: before.channel.get_state() is grpc.ChannelConnectivity.SHUTDOWN, "it is let go"
            )
            assert fleet.not_ready() == ""
        finally:
            await fleet.close()


async def test_one_that_is_being_stopped_gets_nothing_new_and_stays_in_the_fleet() -> None:
    async with verifiers(1) as (address,):
        fleet = Fleet(0.01)
        fleet.start(StaticDiscovery(Endpoints((Endpoint(address, "big", "verifier-0"),))))
        try:
            await wait_until(lambda: fleet.not_ready() == "", "it is up")
            pod = fleet.verifiers[address]
            fleet.update(Endpoints((Endpoint(address, "big", "verifier-0", going=True),)))
            assert [view.draining for view in fleet.verifier_views()] == [True]
            assert fleet.not_ready() == "no verifier is up"
            assert fleet.verifiers[address] is pod
        finally:
            await fleet.close()


async def test_another_pod_at_the_same_address_is_a_new_one() -> None:
    async with verifiers(1) as (address,):
        fleet = Fleet(0.01)
        fleet.start(StaticDiscovery(Endpoints((Endpoint(address, "big", "verifier-0"),))))
        try:
            await wait_until(lambda: fleet.not_ready() == "", "it is up")
            before = fleet.verifiers[address]
            fleet.update(Endpoints((Endpoint(address, "big", "verifier-1"),)))
            assert before.removed
            assert fleet.verifiers[address].endpoint.pod == "verifier-1"
            assert not fleet.verifiers[address].healthy
            await wait_until(lambda: fleet.not_ready() == "", "the new one is up")
        finally:
            await fleet.close()
