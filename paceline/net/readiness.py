"""Ask a service whether it can serve, by gRPC health or an HTTP probe."""

from __future__ import annotations

import grpc
import httpx
from grpc_health.v1 import health_pb2, health_pb2_grpc

from paceline.net.rpc import proxy_options

_TIMEOUT_S = 2.0


async def grpc_serving(address: str) -> bool:
    """Whether the server at `address` (host:port) reports SERVING for itself as a whole."""
    async with grpc.aio.insecure_channel(address, options=proxy_options(False)) as channel:
        try:
            reply = await health_pb2_grpc.HealthStub(channel).Check(
                health_pb2.HealthCheckRequest(), timeout=_TIMEOUT_S
            )
        except grpc.aio.AioRpcError:
            return False
    return bool(reply.status == health_pb2.HealthCheckResponse.SERVING)


async def http_ok(url: str) -> bool:
    """Whether a GET of `url` answers 200."""
    async with httpx.AsyncClient(timeout=_TIMEOUT_S, trust_env=False) as client:
        try:
            return (await client.get(url)).status_code == 200
        except httpx.HTTPError:
            return False
