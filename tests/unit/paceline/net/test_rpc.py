"""Servers over real sockets: health, reflection, and errors as statuses with details."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from paceline.addresses import join_address
from paceline.client import GatewayClient, GatewayError
from paceline.net.handshake import HandshakeError
from paceline.net.readiness import grpc_serving
from paceline.net.rpc import RefusedError, RunningServer, channel, refusals, start_server
from paceline.net.wire import WireError
from paceline.service.settings import SettingsError
from paceline.v1 import gateway_pb2, gateway_pb2_grpc

SERVICE = "paceline.v1.GatewayService"
ERRORS: dict[str, Exception] = {
    "refused": RefusedError(grpc.StatusCode.NOT_FOUND, "no such model", field="model"),
    "refused plainly": RefusedError(grpc.StatusCode.RESOURCE_EXHAUSTED, "full"),
    "refused for now": RefusedError(
        grpc.StatusCode.RESOURCE_EXHAUSTED, "full", field="model", retry_after=2.5
    ),
    "wire": WireError("sampling.top_p", "must be in (0, 1], got 2"),
    "handshake": HandshakeError("protocol version 9 is not spoken here"),
    "unexpected": RuntimeError("a secret of the inside"),
}


class Failing(gateway_pb2_grpc.GatewayServiceServicer):
    """Fails as the request's model says: Generate after its first message, Fleet at once."""

    @refusals
    async def Generate(
        self, request: gateway_pb2.GenerateRequest, context: object
    ) -> AsyncIterator[gateway_pb2.GenerateResponse]:
        yield gateway_pb2.GenerateResponse()
        if request.model:
            raise ERRORS[request.model]

    @refusals
    async def Fleet(self, request: gateway_pb2.FleetRequest, context: object) -> gateway_pb2.FleetResponse:
        raise ERRORS["wire"]


@pytest.fixture
async def server() -> AsyncIterator[RunningServer]:
    running = await start_server(
        lambda server: gateway_pb2_grpc.add_GatewayServiceServicer_to_server(Failing(), server),
        services=[SERVICE],
        host="127.0.0.1",
        port=0,
    )
    yield running
    await running.stop(None)


@pytest.fixture
async def connected(server: RunningServer) -> AsyncIterator[grpc.aio.Channel]:
    async with channel(server.address) as made:
        yield made


def violations(error: grpc.aio.AioRpcError) -> list[tuple[str, str]]:
    for key, value in error.trailing_metadata() or ():
        if key == "grpc-status-details-bin":
            status = status_pb2.Status.FromString(value)
            bad = error_details_pb2.BadRequest()
            assert status.details[0].Unpack(bad)
            assert (status.code, status.message) == (error.code().value[0], error.details())
            return [(each.field, each.description) for each in bad.field_violations]
    return []


@pytest.mark.parametrize(
    ("name", "code", "message", "field"),
    [
        ("refused", grpc.StatusCode.NOT_FOUND, "no such model", "model"),
        ("refused plainly", grpc.StatusCode.RESOURCE_EXHAUSTED, "full", None),
        (
            "wire",
            grpc.StatusCode.INVALID_ARGUMENT,
            "sampling.top_p: must be in (0, 1], got 2",
            "sampling.top_p",
        ),
        ("handshake", grpc.StatusCode.FAILED_PRECONDITION, "protocol version 9 is not spoken here", None),
        ("unexpected", grpc.StatusCode.INTERNAL, "internal error; the server's log has the details", None),
    ],
)
async def test_what_is_raised_becomes_a_status_after_what_was_sent(
    connected: grpc.aio.Channel, name: str, code: grpc.StatusCode, message: str, field: str | None
) -> None:
    call = gateway_pb2_grpc.GatewayServiceStub(connected).Generate(gateway_pb2.GenerateRequest(model=name))
    assert await call.read() == gateway_pb2.GenerateResponse()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call.read()
    assert (caught.value.code(), caught.value.details()) == (code, message)
    assert violations(caught.value) == ([(field, message)] if field else [])


async def test_a_refusal_for_now_says_when_to_call_again(connected: grpc.aio.Channel) -> None:
    call = gateway_pb2_grpc.GatewayServiceStub(connected).Generate(
        gateway_pb2.GenerateRequest(model="refused for now")
    )
    await call.read()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call.read()
    status = status_pb2.Status.FromString(dict(caught.value.trailing_metadata())["grpc-status-details-bin"])
    bad, retry = error_details_pb2.BadRequest(), error_details_pb2.RetryInfo()
    assert status.details[0].Unpack(bad)
    assert status.details[1].Unpack(retry)
    assert retry.retry_delay.ToMilliseconds() == 2500


async def test_a_unary_call_fails_the_same_way(connected: grpc.aio.Channel) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await gateway_pb2_grpc.GatewayServiceStub(connected).Fleet(gateway_pb2.FleetRequest())
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert [field for field, _ in violations(caught.value)] == ["sampling.top_p"]


async def test_a_call_that_does_not_fail_ends_well(connected: grpc.aio.Channel) -> None:
    call = gateway_pb2_grpc.GatewayServiceStub(connected).Generate(gateway_pb2.GenerateRequest())
    assert len([response async for response in call]) == 1
    assert await call.code() is grpc.StatusCode.OK


@pytest.mark.parametrize("service", ["", SERVICE])
async def test_health_is_serving_until_it_is_told_otherwise(
    server: RunningServer, connected: grpc.aio.Channel, service: str
) -> None:
    stub = health_pb2_grpc.HealthStub(connected)
    request = health_pb2.HealthCheckRequest(service=service)
    assert (await stub.Check(request)).status == health_pb2.HealthCheckResponse.SERVING
    await server.not_serving()
    assert (await stub.Check(request)).status == health_pb2.HealthCheckResponse.NOT_SERVING


async def test_reflection_lists_the_services(connected: grpc.aio.Channel) -> None:
    call = reflection_pb2_grpc.ServerReflectionStub(connected).ServerReflectionInfo(
        iter([reflection_pb2.ServerReflectionRequest(list_services="")])
    )
    listed = [each.name async for answer in call for each in answer.list_services_response.service]
    assert {SERVICE, "grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection"} == set(listed)


async def test_a_taken_port_is_named_with_what_to_do(server: RunningServer) -> None:
    words = (
        f"cannot listen on 127.0.0.1:{server.port}: Address already in use; choose another port with --port"
    )
    with pytest.raises(SettingsError, match=words):
        await start_server(lambda server: None, services=[], host="127.0.0.1", port=server.port)


@pytest.mark.parametrize("host", ["192.0.2.1", "nowhere.invalid"])
async def test_a_host_that_is_not_here_is_named_with_what_to_do(host: str) -> None:
    with pytest.raises(SettingsError, match=f"cannot listen on {host}:0: .*; --host must be"):
        await start_server(lambda server: None, services=[], host=host, port=0)


@pytest.mark.parametrize(
    ("host", "reached"),
    [
        ("::1", ["::1"]),
        ("::", ["::1", "127.0.0.1"]),
        ("127.0.0.1", ["127.0.0.1"]),
        ("localhost", ["127.0.0.1"]),
    ],
)
async def test_a_server_is_reached_over_ipv4_and_ipv6(host: str, reached: list[str]) -> None:
    running = await start_server(lambda server: None, services=[], host=host, port=0)
    assert running.address == join_address(host, running.port)
    for each in reached:
        async with channel(join_address(each, running.port)) as made:
            reply = await health_pb2_grpc.HealthStub(made).Check(health_pb2.HealthCheckRequest(), timeout=10)
            assert reply.status == health_pb2.HealthCheckResponse.SERVING
    await running.stop(None)


async def test_services_do_not_call_one_another_through_a_proxy(
    server: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    for name in ("no_proxy", "no_grpc_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    assert await grpc_serving(server.address)
    async with channel(server.address) as made:
        await health_pb2_grpc.HealthStub(made).Check(health_pb2.HealthCheckRequest(), timeout=10)
    async with channel(server.address, use_http_proxy=True) as made:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await health_pb2_grpc.HealthStub(made).Check(health_pb2.HealthCheckRequest(), timeout=10)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


@pytest.mark.parametrize(("told", "through"), [(None, False), (False, False), (True, True)])
async def test_a_client_reaches_this_machine_without_the_proxy_unless_told(
    server: RunningServer, monkeypatch: pytest.MonkeyPatch, told: bool | None, through: bool
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    monkeypatch.delenv("no_proxy", raising=False)
    async with GatewayClient(server.address, use_http_proxy=told) as client:
        with pytest.raises(GatewayError) as caught:
            await client.fleet()
    # What the server says by itself.
    assert (caught.value.code is grpc.StatusCode.INVALID_ARGUMENT) is not through


async def test_a_message_over_the_bound_is_refused() -> None:
    running = await start_server(
        lambda server: gateway_pb2_grpc.add_GatewayServiceServicer_to_server(Failing(), server),
        services=[SERVICE],
        host="127.0.0.1",
        port=0,
        max_receive_bytes=1000,
    )
    async with channel(running.address) as made:
        stub = gateway_pb2_grpc.GatewayServiceStub(made)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.Generate(gateway_pb2.GenerateRequest(text="x" * 2000)).read()
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    await running.stop(None)


@pytest.mark.parametrize(
    "path",
    [
        f"/{SERVICE}/Fleet",
        f"/{SERVICE}/Generate",
        "/grpc.health.v1.Health/Check",
        "/grpc.health.v1.Health/Watch",
    ],
)
async def test_bytes_that_are_no_message_are_bad_input(connected: grpc.aio.Channel, path: str) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await connected.unary_stream(path)(b"\xff\xff\xff", timeout=5).read()
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_bytes_that_are_no_message_in_a_stream_are_bad_input(connected: grpc.aio.Channel) -> None:
    path = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
    call = connected.stream_stream(path)(timeout=5)
    await call.write(reflection_pb2.ServerReflectionRequest(list_services="").SerializeToString())
    assert await call.read() is not grpc.aio.EOF
    await call.write(b"\xff\xff\xff")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call.read()
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_a_client_that_is_gone_before_its_answer_is_no_error(
    server: RunningServer, caplog: pytest.LogCaptureFixture
) -> None:
    grpcs_own = logging.getLogger("grpc._cython.cygrpc")
    for error in (grpc.aio.InternalError(), ValueError("another")):
        grpcs_own.error("%s raised in core by servicer method [%s]", type(error), "/Fleet", exc_info=error)
    assert [type(record.exc_info[1]) for record in caplog.records if record.exc_info] == [ValueError]


async def test_a_client_that_is_gone_amid_a_stream_is_no_error(
    server: RunningServer, capsys: pytest.CaptureFixture[str]
) -> None:
    class Gone:
        async def write(self, response: object) -> None:
            raise grpc.aio.InternalError

    generate: Any = Failing().Generate
    with pytest.raises(asyncio.CancelledError):
        await generate(gateway_pb2.GenerateRequest(), Gone())
    assert "unexpected" not in capsys.readouterr().err


async def test_calls_that_a_stop_cuts_have_ended_when_it_returns() -> None:
    """A gateway closes its channels then, over which the calls' last words go."""
    said: list[str] = []

    class Lasting(gateway_pb2_grpc.GatewayServiceServicer):
        @refusals
        async def Generate(
            self, request: gateway_pb2.GenerateRequest, context: object
        ) -> AsyncIterator[gateway_pb2.GenerateResponse]:
            try:
                yield gateway_pb2.GenerateResponse()
                await asyncio.Event().wait()
            finally:
                await asyncio.sleep(0.2)
                said.append("the last word")

    running = await start_server(
        lambda server: gateway_pb2_grpc.add_GatewayServiceServicer_to_server(Lasting(), server),
        services=[SERVICE],
        host="127.0.0.1",
        port=0,
    )
    async with channel(running.address) as made:
        call = gateway_pb2_grpc.GatewayServiceStub(made).Generate(gateway_pb2.GenerateRequest())
        await call.read()
        await running.stop(0.05)
        assert said == ["the last word"]
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call.read()
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
