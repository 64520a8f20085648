"""Keys of gRPC calls: refused before anything of the call is received."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from gateway.grpc.key_check import SCOPES, KeyCheck, calling
from gateway.keys import ApiKeys
from paceline.api_keys import Scope, api_key_hash
from paceline.net.rpc import RunningServer, channel, refusals, start_server
from paceline.v1 import gateway_pb2 as pb
from paceline.v1 import gateway_pb2_grpc

SERVICE = "paceline.v1.GatewayService"
BOUND = 64 << 10
KEYS = {"writer": "generate", "watcher": "status"}


class Echo(gateway_pb2_grpc.GatewayServiceServicer):
    """Says who calls."""

    def __init__(self) -> None:
        self.decoded = 0

    @refusals
    async def Generate(
        self, request: pb.GenerateRequest, context: object
    ) -> AsyncIterator[pb.GenerateResponse]:
        self.decoded += 1
        yield pb.GenerateResponse(chunk=pb.TextChunk(text=calling().id))

    @refusals
    async def Fleet(self, request: pb.FleetRequest, context: object) -> pb.FleetResponse:
        self.decoded += 1
        return pb.FleetResponse()


@pytest.fixture
def echo() -> Echo:
    return Echo()


@pytest.fixture
async def server(echo: Echo, tmp_path: Path) -> AsyncIterator[RunningServer]:
    entries = [{"id": id, "sha256": [api_key_hash(id)], "scopes": [scope]} for id, scope in KEYS.items()]
    (tmp_path / "keys.json").write_text(json.dumps({"keys": entries}))
    running = await start_server(
        lambda grpc_server: gateway_pb2_grpc.add_GatewayServiceServicer_to_server(echo, grpc_server),
        services=[SERVICE],
        host="127.0.0.1",
        port=0,
        max_receive_bytes=BOUND,
        interceptors=[KeyCheck(ApiKeys(tmp_path / "keys.json"))],
    )
    yield running
    await running.stop(None)


@pytest.fixture
async def stub(server: RunningServer) -> AsyncIterator[gateway_pb2_grpc.GatewayServiceStub]:
    async with channel(server.address) as made:
        yield gateway_pb2_grpc.GatewayServiceStub(made)


def bearer(key: str) -> list[tuple[str, str]]:
    return [("authorization", f"Bearer {key}")]


async def test_a_call_is_its_keys_holders(stub: gateway_pb2_grpc.GatewayServiceStub) -> None:
    call = stub.Generate(pb.GenerateRequest(), metadata=bearer("writer"))
    assert (await call.read()).chunk.text == "writer"


@pytest.mark.parametrize(
    ("metadata", "code"),
    [
        ([], grpc.StatusCode.UNAUTHENTICATED),
        (bearer("nobody"), grpc.StatusCode.UNAUTHENTICATED),
        (bearer("watcher"), grpc.StatusCode.PERMISSION_DENIED),
    ],
)
async def test_the_key_is_refused_before_the_message_is_received(
    stub: gateway_pb2_grpc.GatewayServiceStub,
    echo: Echo,
    metadata: list[tuple[str, str]],
    code: grpc.StatusCode,
) -> None:
    """Shown by a message over the bound, of which a call with a key hears."""
    large = pb.GenerateRequest(text="x" * (2 * BOUND))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.Generate(large, metadata=metadata).read()
    assert caught.value.code() is code
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.Generate(large, metadata=bearer("writer")).read()
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert not echo.decoded


async def test_unary_calls_are_refused_the_same_way(stub: gateway_pb2_grpc.GatewayServiceStub) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.Fleet(pb.FleetRequest(), metadata=bearer("writer"))
    assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED
    assert await stub.Fleet(pb.FleetRequest(), metadata=bearer("watcher")) == pb.FleetResponse()


async def test_health_needs_no_key(server: RunningServer) -> None:
    async with channel(server.address) as made:
        answer = await health_pb2_grpc.HealthStub(made).Check(health_pb2.HealthCheckRequest(service=SERVICE))
    assert answer.status == health_pb2.HealthCheckResponse.SERVING


def test_every_method_needs_a_scope() -> None:
    assert set(SCOPES.values()) <= set(Scope)
    assert set(SCOPES) == {f"/{SERVICE}/{name}" for name in ("Generate", "Resume", "Cancel", "Fleet")}
