"""A fleet that says what a test makes it say."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from paceline.v1.drafter_pb2 import DrafterStatusResponse
from paceline.v1.verifier_pb2 import VerifierStatusResponse


@dataclass(eq=False)
class FakePod:
    """A pod with counts that go on as a test says."""

    status: Any = None
    misfit: str = ""

    @property
    def draining(self) -> bool:
        return self.status is not None and self.status.draining


class FakeVerifier(FakePod):
    def __init__(self, pool: str = "default", **says: Any) -> None:
        super().__init__(
            VerifierStatusResponse(pool=pool, max_sessions=64, kv_total=1000, full_rows=32, **says)
        )

    def goes_on(
        self,
        seconds: float = 1.0,
        *,
        busy: float = 0.0,
        sessions: int = 0,
        steps: int = 0,
        rows: int = 0,
        nodes: int = 0,
        wanted: int = 0,
        missing: int = 0,
        kv: int = 0,
        waiting: int = 0,
    ) -> None:
        """So much later, in which it was busy for that share of the time."""
        after = VerifierStatusResponse()
        after.CopyFrom(self.status)
        after.uptime_seconds += seconds
        after.busy_seconds += busy * seconds
        after.steps += steps
        after.session_steps += steps * max(1, sessions)
        after.rows += rows
        after.drafted_tokens += nodes
        after.wanted_trees += wanted
        after.missing_trees += missing
        after.sessions, after.kv_used, after.waiting = sessions, kv, waiting
        self.status = after


class FakeDrafter(FakePod):
    def __init__(self, pool: str = "default", **says: Any) -> None:
        super().__init__(DrafterStatusResponse(pool=pool, max_sessions=100, **says))

    def goes_on(self, seconds: float = 1.0, *, busy: float = 0.0, sessions: int = 0) -> None:
        """See `FakeVerifier`."""
        after = DrafterStatusResponse()
        after.CopyFrom(self.status)
        after.uptime_seconds += seconds
        after.busy_seconds += busy * seconds
        after.sessions = sessions
        self.status = after


@dataclass
class FakeFleet:
    verifiers: dict[str, FakePod] = field(default_factory=dict)
    drafters: dict[str, FakePod] = field(default_factory=dict)
