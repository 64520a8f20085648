"""Verifiers and drafters asked from here, without a gateway in between."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from typing import Any

import grpc

from paceline.cli.doctor import clock
from paceline.cli.doctor.findings import Check, Report
from paceline.cli.doctor.handshake import Shown, diagnosis
from paceline.net import rpc
from paceline.net.roles import Role
from paceline.net.tls import Identity
from paceline.v1 import drafter_pb2, drafter_pb2_grpc, verifier_pb2, verifier_pb2_grpc

_SECONDS = 5.0
_ASK: dict[Role, tuple[Any, Any]] = {
    Role.VERIFIER: (verifier_pb2_grpc.VerifierServiceStub, verifier_pb2.VerifierStatusRequest()),
    Role.DRAFTER: (drafter_pb2_grpc.DrafterServiceStub, drafter_pb2.DrafterStatusRequest()),
}


async def check(
    report: Report, role: Role, addresses: Iterable[str], identity: Identity | None, shown: Shown | None
) -> dict[str, Any]:
    """The status of each pod of `role` that answers. `identity` and `shown` are of the same files."""
    addresses = list(addresses)
    answers = await asyncio.gather(*(_ask(report, role, each, identity, shown) for each in addresses))
    return {each: status for each, status in zip(addresses, answers, strict=True) if status is not None}


async def _ask(
    report: Report, role: Role, address: str, identity: Identity | None, shown: Shown | None
) -> Any:
    subject = f"{role} {address}"
    stub, request = _ASK[role]
    channel = rpc.channel(address, role, identity)
    try:
        # The first call pays for the connection, whose time says nothing of clocks.
        await stub(channel).Status(request, timeout=_SECONDS)
        asked = time.time()
        status = await stub(channel).Status(request, timeout=_SECONDS)
    except grpc.aio.AioRpcError as error:
        found = await diagnosis(address, shown, role)
        what, do = found or _refusal(error, role)
        check = Check.TLS if found and "certificate" in what else Check.REACHABILITY
        report.error(check, subject, what, do)
        return None
    finally:
        await channel.close()
    report.ok(Check.REACHABILITY, subject, "answers")
    clock.check(report, subject, status.clock_seconds, asked, time.time())
    return status


def _refusal(error: grpc.aio.AioRpcError, role: Role) -> tuple[str, str]:
    """For a server that is reached and does not answer as it should."""
    code, said = error.code(), error.details()
    match code:
        case grpc.StatusCode.UNIMPLEMENTED:
            return f"is no {role}", f"another service listens there: name a {role}"
        case grpc.StatusCode.PERMISSION_DENIED:
            return f"refuses us: {said}", "show the certificate of a service (--tls-cert, --tls-key)"
        case grpc.StatusCode.DEADLINE_EXCEEDED:
            return f"has not answered for {_SECONDS:g} s", "it hangs or has too much to do: look at its log"
        case _:
            return f"fails: {code.name}: {said}", "its log says why"
