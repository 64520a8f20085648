from __future__ import annotations

import asyncio

import grpc
import pytest

from paceline.client import (
    ChatMessage,
    Chunk,
    Finished,
    GatewayClient,
    GatewayError,
    GatewayUnreachableError,
    Generation,
    Started,
    SyncGatewayClient,
)
from paceline.net.rpc import RefusedError
from paceline.session import FinishReason, Receipt
from tests.scripted_gateway import scripted_gateway

EVENTS = [
    Started("s", "tiny", 3, 2**63),
    Chunk("Hi", 3, (7, 8), 2, characters=2),
    Chunk(" th\x1bere", 5, (9,), 0, characters=7),
    Finished(FinishReason.STOP, Receipt(2, 3, 4, 2, 1)),
]


async def test_both_clients_give_the_same_typed_events() -> None:
    async with scripted_gateway() as (gateway, address):
        generation = Generation(
            text="once",
            max_tokens=5,
            seed=2**64 - 1,
            stop=["\n"],
            stop_token_ids=[7, 8],
            ignore_eos=True,
            min_tokens=3,
        )
        async with GatewayClient(address) as client:
            assert [event async for event in client.generate(generation)] == EVENTS

        def blocking() -> list[object]:
            with SyncGatewayClient(address) as client:
                return list(client.generate(generation))

        assert await asyncio.to_thread(blocking) == EVENTS
        first, second = gateway.requests
        assert first == second
        assert first.text == "once"
        assert (first.seed, first.max_tokens, list(first.stop)) == (2**64 - 1, 5, ["\n"])
        assert (list(first.stop_token_ids), first.ignore_eos, first.min_tokens) == ([7, 8], True, 3)


async def test_what_is_not_given_is_not_sent() -> None:
    request = Generation(chat=[ChatMessage("user", "hello")]).to_proto()
    assert request.WhichOneof("prompt") == "chat"
    for name in ("temperature", "top_k", "top_p", "min_p", "seed", "max_tokens"):
        assert not request.HasField(name)
    assert request.speculation
    assert (request.ignore_eos, request.min_tokens, list(request.stop_token_ids)) == (False, 0, [])
    assert Generation(ids=[1, 2]).to_proto().tokens.ids == [1, 2]
    zeros = Generation.ask("hello", temperature=0.0).to_proto()
    assert zeros.HasField("temperature")


async def test_a_refusal_carries_its_code_and_words() -> None:
    async with scripted_gateway() as (gateway, address), GatewayClient(address) as client:
        gateway.refusal = RefusedError(grpc.StatusCode.UNAVAILABLE, "no verifier serves this model")
        with pytest.raises(GatewayError, match="no verifier serves this model") as caught:
            await anext(client.generate(Generation.ask("hello")))
        assert not isinstance(caught.value, GatewayUnreachableError)
        assert caught.value.code is grpc.StatusCode.UNAVAILABLE


async def test_nothing_there_is_said_as_such() -> None:
    async with GatewayClient("127.0.0.1:1") as client:
        with pytest.raises(GatewayUnreachableError, match=r"no gateway answers at 127\.0\.0\.1:1"):
            await client.fleet()
    with SyncGatewayClient("no-such-host.invalid:1") as sync, pytest.raises(GatewayUnreachableError):
        await asyncio.to_thread(sync.fleet)


async def test_closing_the_iterator_cancels_the_session() -> None:
    async with scripted_gateway() as (gateway, address), GatewayClient(address) as client:
        gateway.hangs = True
        events = client.generate(Generation.ask("hello"))
        assert await anext(events) == EVENTS[0]
        await events.aclose()
        await asyncio.wait_for(gateway.cancelled.wait(), 10)
