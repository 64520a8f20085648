"""Servers and channels that have an identity, over real sockets: roles, and certificates that change."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from paceline.net.roles import Role
from paceline.net.rpc import Connection, RunningServer, channel, refusals, start_server
from paceline.net.tls import Identity, PemFiles
from paceline.v1 import verifier_pb2, verifier_pb2_grpc
from tests.certificates import Authority, Secret

Mesh = Callable[[Role], tuple[Secret, Identity]]


class Verifier(verifier_pb2_grpc.VerifierServiceServicer):
    """Opens sessions and ends them when it is told to; says how often it was reached."""

    def __init__(self) -> None:
        self.reached = 0
        self.finish = asyncio.Event()

    @refusals
    async def Open(
        self, request: verifier_pb2.OpenRequest, context: object
    ) -> AsyncIterator[verifier_pb2.OpenResponse]:
        self.reached += 1
        yield verifier_pb2.OpenResponse(opened=verifier_pb2.Opened())
        await self.finish.wait()
        yield verifier_pb2.OpenResponse(finished=verifier_pb2.Finished())

    @refusals
    async def Status(
        self, request: verifier_pb2.VerifierStatusRequest, context: object
    ) -> verifier_pb2.VerifierStatusResponse:
        self.reached += 1
        return verifier_pb2.VerifierStatusResponse()


@pytest.fixture
def mesh(tmp_path: Path) -> Mesh:
    """Secrets and identities of one CA."""
    authority = Authority()

    def made(role: Role) -> tuple[Secret, Identity]:
        secret = Secret(tmp_path / role, authority.issue(role.dns_name))
        return secret, Identity(PemFiles(secret.cert, secret.key, secret.ca, "tls"), role)

    return made


@asynccontextmanager
async def serving(servicer: Verifier, identity: Identity) -> AsyncIterator[RunningServer]:
    def add(server: grpc.aio.Server) -> None:
        verifier_pb2_grpc.add_VerifierServiceServicer_to_server(servicer, server)

    services = ["paceline.v1.VerifierService"]
    server = await start_server(add, services=services, host="127.0.0.1", port=0, identity=identity)
    try:
        yield server
    finally:
        await server.stop(None)


def open_session(made: grpc.aio.Channel) -> Any:
    return verifier_pb2_grpc.VerifierServiceStub(made).Open(verifier_pb2.OpenRequest())


async def test_a_role_that_may_not_call_never_reaches_the_method(mesh: Mesh) -> None:
    verifier = Verifier()
    _, drafter = mesh(Role.DRAFTER)
    async with serving(verifier, mesh(Role.VERIFIER)[1]) as server:
        async with channel(server.address, Role.VERIFIER, drafter) as made:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await open_session(made).read()
            assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED
            assert caught.value.details() == (
                "a certificate of role drafter may not call /paceline.v1.VerifierService/Open; "
                "allowed: gateway"
            )
            assert verifier.reached == 0
            # It may ask for the status, for health, and what there is.
            await verifier_pb2_grpc.VerifierServiceStub(made).Status(verifier_pb2.VerifierStatusRequest())
            health = await health_pb2_grpc.HealthStub(made).Check(health_pb2.HealthCheckRequest())
            assert health.status == health_pb2.HealthCheckResponse.SERVING
            assert verifier.reached == 1
        async with channel(server.address, Role.DRAFTER, drafter) as made:
            with pytest.raises(grpc.aio.AioRpcError, match="Hostname Verification Check failed"):
                await open_session(made).read()


@pytest.mark.parametrize("name", ["*", "*.paceline.internal", "paceline-role-*", "*-verifier", "*.*"])
async def test_a_wildcard_certificate_is_of_no_role(mesh: Mesh, tmp_path: Path, name: str) -> None:
    secret, _ = mesh(Role.VERIFIER)
    authority = Authority()
    secret.put(authority.issue(name))
    # As a service would not start: of no role itself.
    impostor = Identity(PemFiles(secret.cert, secret.key, secret.ca, "tls"))
    honest = Secret(tmp_path / "honest", authority.issue(Role.GATEWAY.dns_name))
    gateway = Identity(PemFiles(honest.cert, honest.key, honest.ca, "tls"), Role.GATEWAY)
    verifier = Verifier()
    async with serving(verifier, impostor) as server, channel(server.address, Role.VERIFIER, gateway) as made:
        with pytest.raises(grpc.aio.AioRpcError, match="Hostname Verification Check failed"):
            await open_session(made).read()
        assert verifier.reached == 0
    async with serving(verifier, gateway) as server, channel(server.address, Role.GATEWAY, impostor) as made:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await open_session(made).read()
        assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED


async def test_a_call_stays_where_it_began_when_the_certificate_changes(mesh: Mesh) -> None:
    verifier = Verifier()
    secret, gateway = mesh(Role.GATEWAY)
    async with serving(verifier, mesh(Role.VERIFIER)[1]) as server:
        connection = Connection(server.address, Role.VERIFIER, gateway)
        first = connection.channel
        call = open_session(first)
        assert (await call.read()).HasField("opened")
        assert connection.channel is first
        cert, key, ca = (path.read_bytes() for path in (secret.cert, secret.key, secret.ca))
        # Another file with the same text: an identity takes what is new, whatever it holds.
        secret.put_bytes(cert, key, ca)
        gateway.refresh()
        second = connection.channel
        assert second is not first
        assert connection.channel is second
        await verifier_pb2_grpc.VerifierServiceStub(second).Status(verifier_pb2.VerifierStatusRequest())
        verifier.finish.set()
        assert (await call.read()).HasField("finished")
        assert await call.code() is grpc.StatusCode.OK
        await connection.close()


@pytest.mark.parametrize(("host", "warned"), [("127.0.0.1", False), ("0.0.0.0", True)])
async def test_plaintext_beyond_this_machine_is_said(
    host: str, warned: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    server = await start_server(lambda _: None, services=[], host=host, port=0)
    await server.stop(None)
    captured = capsys.readouterr()
    assert ("no TLS: whoever reaches this port" in captured.out + captured.err) is warned
