"""Ask a service whether it can serve, by gRPC health or an HTTP probe."""

from __future__ import annotations

import grpc
import httpx
from grpc_health.v1 import health_pb2, health_pb2_grpc

from paceline.net.roles import Role
from paceline.net.rpc import channel
from paceline.net.tls import Identity

_TIMEOUT_S = 2.0


async def grpc_serving(address: str, server: Role | None = None, identity: Identity | None = None) -> bool:
    """Whether the server at `address` (host:port) reports SERVING for itself as a whole; see `channel`."""
    async with channel(address, server, identity) as opened:
        try:
            reply = await health_pb2_grpc.HealthStub(opened).Check(
                health_pb2.HealthCheckRequest(), timeout=_TIMEOUT_S
            )
        except grpc.aio.AioRpcError:
            return False
    return bool(reply.status == health_pb2.HealthCheckResponse.SERVING)


async def http_ok(url: str, *, verify: bool = True) -> bool:
    """Whether a GET of `url` answers 200. `verify`: take no certificate that the system does not trust."""
    async with httpx.AsyncClient(timeout=_TIMEOUT_S, trust_env=False, verify=verify) as client:
        try:
            return (await client.get(url)).status_code == 200
        except httpx.HTTPError:
            return False
