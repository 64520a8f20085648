"""The doctor as tests call it, and scripted pods that are ill in one way each."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc

from paceline import __version__
from paceline.cli.doctor.examination import Asked, examine
from paceline.cli.doctor.findings import Check, Finding, Level, Report
from paceline.net.handshake import PROTOCOL_VERSION
from paceline.net.rpc import start_server
from paceline.net.tls import Identity
from paceline.v1 import (
    drafter_pb2,
    drafter_pb2_grpc,
    gateway_pb2,
    gateway_pb2_grpc,
    verifier_pb2,
    verifier_pb2_grpc,
)

# Nobody listens there.
NOWHERE = "127.0.0.1:1"


async def examined(**named: Any) -> Report:
    """What the doctor finds; the gateway is `NOWHERE` unless one is named."""
    asked: dict[str, Any] = {
        "gateway": NOWHERE,
        "tls": False,
        "ca": None,
        "api_key": None,
        "verifiers": (),
        "drafters": (),
        "redis_url": None,
        "cert": None,
        "key": None,
        "trusted": None,
        "direct": True,
    }
    return await asyncio.to_thread(examine, Asked(**{**asked, **named}))


def found(report: Report, check: Check, *levels: Level) -> list[Finding]:
    """Findings of a check, of any of the levels; those that are not ok where none is named."""
    wanted = levels or (Level.NOTE, Level.WARNING, Level.ERROR)
    return [each for each in report.findings if each.check is check and each.level in wanted]


class Ill:
    """One process that is a gateway, a verifier and a drafter, and says of itself what a test wants."""

    def __init__(self) -> None:
        self.clock = 0.0
        self.status: dict[str, Any] = {}
        self.fleet = gateway_pb2.FleetResponse()

    def _own(self) -> dict[str, Any]:
        said = {"version": __version__, "protocol_version": PROTOCOL_VERSION}
        return {**said, "clock_seconds": time.time() + self.clock}

    def verifier(self) -> verifier_pb2.VerifierStatusResponse:
        """What it says as a verifier."""
        usual = {"model_id": "m", "vocab_fingerprint": "f", "device": "cpu float32", "max_sessions": 1}
        return verifier_pb2.VerifierStatusResponse(**{**usual, **self._own(), **self.status})


class _Verifier(verifier_pb2_grpc.VerifierServiceServicer):
    def __init__(self, ill: Ill) -> None:
        self._ill = ill

    async def Status(self, request: object, context: grpc.aio.ServicerContext) -> Any:
        return self._ill.verifier()


class _Drafter(drafter_pb2_grpc.DrafterServiceServicer):
    def __init__(self, ill: Ill) -> None:
        self._ill = ill

    async def Status(self, request: object, context: grpc.aio.ServicerContext) -> Any:
        return drafter_pb2.DrafterStatusResponse(**{**self._ill._own(), **self._ill.status})


class _Gateway(gateway_pb2_grpc.GatewayServiceServicer):
    def __init__(self, ill: Ill) -> None:
        self._ill = ill

    async def Fleet(self, request: object, context: grpc.aio.ServicerContext) -> Any:
        fleet = gateway_pb2.FleetResponse(**self._ill._own())
        fleet.MergeFrom(self._ill.fleet)
        return fleet


@asynccontextmanager
async def serving(
    ill: Ill, *, only: str = "gateway verifier drafter", identity: Identity | None = None
) -> AsyncIterator[str]:
    """Its address. `only`: what it is."""

    def add(server: grpc.aio.Server) -> None:
        if "gateway" in only:
            gateway_pb2_grpc.add_GatewayServiceServicer_to_server(_Gateway(ill), server)
        if "verifier" in only:
            verifier_pb2_grpc.add_VerifierServiceServicer_to_server(_Verifier(ill), server)
        if "drafter" in only:
            drafter_pb2_grpc.add_DrafterServiceServicer_to_server(_Drafter(ill), server)

    server = await start_server(add, services=[], host="127.0.0.1", port=0, identity=identity)
    try:
        yield server.address
    finally:
        await server.stop(0)
