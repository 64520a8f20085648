"""Runs a gateway's recommendations: followed always, and served to KEDA where a port is set for it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from gateway.fleet import Fleet
from gateway.scaling.autoscaler import Autoscaler
from gateway.scaling.config import ScalingSettings
from gateway.scaling.keda import SERVICE, KedaScaler
from paceline.keda import externalscaler_pb2_grpc
from paceline.net.rpc import start_server
from paceline.net.tls import Identity
from paceline.service import telemetry
from paceline.service.tasks import cancel_and_wait

log = telemetry.logger(__name__)

# The fleet is looked at as often as it is polled, within these.
_SECONDS = (0.2, 5.0)


@asynccontextmanager
async def recommending(
    settings: ScalingSettings, fleet: Fleet, identity: Identity | None, *, poll_seconds: float
) -> AsyncIterator[None]:
    """Recommend until the block is left. With an `identity`, KEDA must show a certificate of its role."""
    autoscaler = Autoscaler(
        fleet,
        settings.scaling,
        queued=lambda: fleet.waiting,
        seconds=min(max(poll_seconds, _SECONDS[0]), _SECONDS[1]),
    )
    server = None
    if settings.scaler_port:
        server = await start_server(
            lambda grpc_server: externalscaler_pb2_grpc.add_ExternalScalerServicer_to_server(
                KedaScaler(autoscaler), grpc_server
            ),
            services=[SERVICE],
            host=settings.host,
            port=settings.scaler_port,
            identity=identity,
            setting="--scaler-port",
        )
        log.info("recommending to KEDA", address=server.address)
    following = asyncio.create_task(autoscaler.run(), name="follow the load")
    try:
        yield
    finally:
        await cancel_and_wait(following)
        if server is not None:
            await server.stop(0)
