"""The gateway, and the fleet as it sees it."""

from __future__ import annotations

import time
from pathlib import Path

import grpc

from paceline.cli.doctor import clock
from paceline.cli.doctor.findings import Check, Report
from paceline.cli.doctor.handshake import Shown, diagnosis
from paceline.client import GatewayClient, GatewayError
from paceline.v1 import gateway_pb2


async def check(
    report: Report, address: str, *, tls: bool, ca: Path | None, api_key: str | None
) -> gateway_pb2.FleetResponse | None:
    """The fleet, from the gateway at `address`; None if it does not tell."""
    subject = f"gateway {address}"
    shown = Shown(ca) if tls or ca else None
    try:
        credentials = _credentials(ca) if shown else None
    except OSError as error:
        report.error(Check.TLS, subject, f"--ca {ca}: {error.strerror}", "name a PEM file that can be read")
        return None
    async with GatewayClient(address, credentials, api_key=api_key) as client:
        try:
            await client.fleet()
            asked = time.time()
            fleet = await client.fleet()
        except GatewayError as error:
            found = await diagnosis(address, shown)
            what, do = found or _refusal(error)
            check = Check.TLS if found and "certificate" in what else Check.REACHABILITY
            report.error(check, subject, what, do)
            return None
    report.ok(Check.REACHABILITY, subject, "answers")
    clock.check(report, subject, fleet.clock_seconds, asked, time.time())
    return fleet


def _credentials(ca: Path | None) -> grpc.ChannelCredentials:
    return grpc.ssl_channel_credentials(None if ca is None else ca.read_bytes())


def _refusal(error: GatewayError) -> tuple[str, str]:
    match error.code:
        case grpc.StatusCode.UNAUTHENTICATED | grpc.StatusCode.PERMISSION_DENIED:
            return (
                f"does not tell of its fleet: {error}",
                "set PACELINE_API_KEY to a key with the scope `status` (`paceline key create`)",
            )
        case grpc.StatusCode.UNIMPLEMENTED:
            return "is no gateway", "another service listens there: give the gateway's gRPC port (8001)"
        case _:
            return f"fails: {error.code.name}: {error}", "its log says why"
