"""What a fleet has done and taken since it started: tokens, steps, time in them, processor time, bytes."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, fields
from urllib.request import urlopen

from prometheus_client.parser import text_string_to_metric_families

from bench.system import RunningSystem
from paceline.local.plan import HOST, choose_addresses
from paceline.net import rpc
from paceline.net.roles import Role
from paceline.v1 import verifier_pb2, verifier_pb2_grpc

_TIMEOUT_S = 5.0


@dataclass(frozen=True, slots=True)
class Usage:
    """Counts since the start, or between two readings."""

    tokens: float = 0
    # Of single sessions.
    steps: float = 0
    drafted: float = 0
    accepted: float = 0
    # The engine's seconds in steps, waits excluded.
    step_seconds: float = 0
    # Processor time of all drafters.
    drafter_seconds: float = 0
    # Of messages on drafters' streams, from the drafters and to them.
    bytes_up: float = 0
    bytes_down: float = 0
    # In which steps waited for trees.
    exposed_seconds: float = 0

    def __sub__(self, other: Usage) -> Usage:
        return Usage(*(getattr(self, each.name) - getattr(other, each.name) for each in fields(self)))

    def __add__(self, other: Usage) -> Usage:
        return Usage(*(getattr(self, each.name) + getattr(other, each.name) for each in fields(self)))


def free_port() -> int:
    """For the verifier's metrics."""
    return choose_addresses(http_port=0, grpc_port=0, verifiers=0, drafters=0).http_port


async def status(running: RunningSystem) -> verifier_pb2.VerifierStatusResponse:
    """Of the one verifier. Raises `grpc.aio.AioRpcError` where it does not answer."""
    async with rpc.channel(running.addresses.verifiers[0], Role.VERIFIER, None) as channel:
        stub = verifier_pb2_grpc.VerifierServiceStub(channel)
        request = verifier_pb2.VerifierStatusRequest()
        told: verifier_pb2.VerifierStatusResponse = await stub.Status(request, timeout=_TIMEOUT_S)
    return told


async def metrics(port: int) -> Mapping[tuple[str, str], float]:
    """A service's samples by name and value of the label that tells them apart here. Raises `OSError`."""
    page = await asyncio.to_thread(_page, port)
    return {
        (sample.name, sample.labels.get("direction") or sample.labels.get("source", "")): sample.value
        for family in text_string_to_metric_families(page)
        for sample in family.samples
    }


def _page(port: int) -> str:
    with urlopen(f"http://{HOST}:{port}/metrics", timeout=_TIMEOUT_S) as answer:
        return str(answer.read().decode())


async def read(running: RunningSystem, metrics_port: int) -> Usage:
    """Of the one verifier and the fleet's drafters. Raises `grpc.aio.AioRpcError` and `OSError`."""
    told = await status(running)
    samples = await metrics(metrics_port)
    taken = running.processor_seconds()
    return Usage(
        tokens=told.committed_tokens,
        steps=told.session_steps,
        drafted=told.drafted_tokens,
        accepted=told.accepted_tokens,
        step_seconds=told.busy_seconds,
        drafter_seconds=sum(seconds for name, seconds in taken.items() if name.startswith("drafter")),
        bytes_up=samples.get(("paceline:draft_bytes_total", "up"), 0.0),
        bytes_down=samples.get(("paceline:draft_bytes_total", "down"), 0.0),
        exposed_seconds=samples.get(("paceline:exposed_draft_seconds_total", ""), 0.0),
    )
