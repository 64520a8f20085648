"""What a fleet has done and taken since it started: tokens, steps, time in them, processor time, bytes."""

from __future__ import annotations

from dataclasses import dataclass, fields

from bench.system import RunningSystem
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

    def __sub__(self, other: Usage) -> Usage:
        return Usage(*(getattr(self, each.name) - getattr(other, each.name) for each in fields(self)))

    def __add__(self, other: Usage) -> Usage:
        return Usage(*(getattr(self, each.name) + getattr(other, each.name) for each in fields(self)))


async def read(running: RunningSystem) -> Usage:
    """Of the one verifier and all drafters. Raises `grpc.aio.AioRpcError` where it does not answer."""
    async with rpc.channel(running.addresses.verifiers[0], Role.VERIFIER, None) as channel:
        status = await verifier_pb2_grpc.VerifierServiceStub(channel).Status(
            verifier_pb2.VerifierStatusRequest(), timeout=_TIMEOUT_S
        )
    taken = running.processor_seconds()
    return Usage(
        tokens=status.committed_tokens,
        steps=status.session_steps,
        drafted=status.drafted_tokens,
        accepted=status.accepted_tokens,
        step_seconds=status.busy_seconds,
        drafter_seconds=sum(seconds for name, seconds in taken.items() if name.startswith("drafter")),
    )
