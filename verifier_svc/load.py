"""How much a verifier has to do, as counts since its start.

Counts only grow, so whoever reads them twice knows the load in between: two gateways that ask at different
times come to the same shares, each over its own time.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, field

from verifier_svc.cost import StepCost
from verifier_svc.sessions import Session

# A step that is full takes this many times as long as one of a single row.
_FULL_STRETCH = 2.0


@dataclass(slots=True)
class Load:
    """The engine's thread counts; each field is one number, which any thread may read without a lock."""

    # Time in steps: forward, draws, and what comes of them for the sessions.
    busy_seconds: float = 0.0
    steps: int = 0
    # Rows of all steps: of prompts, of decoding sessions, and of tree nodes.
    rows: int = 0
    # Steps of single sessions for which a tree was expected to pay, and of these the ones that had none in
    # time. Trees that are asked for only to keep learning are not counted.
    wanted_trees: int = 0
    missing_trees: int = 0
    # Time in which steps waited for trees instead of computing.
    exposed_seconds: float = 0.0
    # Time in which single sessions' trees were waited for, summed over sessions.
    exposed_reply_seconds: float = 0.0
    started: float = field(default_factory=time.monotonic)

    @property
    def uptime_seconds(self) -> float:
        """Seconds since the counts began."""
        return time.monotonic() - self.started

    def stepped(self, seconds: float, rows: int) -> None:
        """Count a step."""
        self.busy_seconds += seconds
        self.steps += 1
        self.rows += rows

    def wanted(self, *, offered: bool) -> None:
        """Count a session's step for which a tree was expected to pay; `offered`: whether it had one."""
        self.wanted_trees += 1
        self.missing_trees += not offered


def waiting(sessions: Iterable[Session]) -> int:
    """Sessions that hold no KV: they wait for room in it, or behind the prompts of others."""
    return sum(not session.blocks for session in sessions)


def full_rows(cost: StepCost) -> int:
    """Rows up to which a step takes at most twice as long as a step of one row.

    Up to there a session more costs the others little; beyond, everybody waits for it.
    """
    most = _FULL_STRETCH * cost.seconds(1, 1)
    return max((edge for edge in cost.edges if cost.seconds(edge, 1) <= most), default=1)
