"""One pod's load between its last two answers, from the counts in them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

from paceline.v1 import drafter_pb2, verifier_pb2

Status: TypeAlias = verifier_pb2.VerifierStatusResponse | drafter_pb2.DrafterStatusResponse


@dataclass(frozen=True, slots=True)
class Rates:
    """Counts a second of the pod's own time. A drafter has `busy` alone."""

    busy: float = 0.0
    # A verifier's rows without tree nodes: those computed at a time, idle time with none.
    rows: float = 0.0
    wanted: float = 0.0
    missing: float = 0.0
    # The share of sessions' steps for which a tree was expected to pay.
    wanting: float = 0.0


class Watched:
    """A pod and what it has said."""

    def __init__(self, at: float) -> None:
        """`at`: now, on the clock of `take`."""
        self.status: Any = None
        self.draining = False
        self.rates = Rates()
        # When it last said something new.
        self.heard = at
        self._counted: Any = None

    def take(self, status: Status, at: float) -> None:
        """Take its last status, which may be one that was taken before."""
        self.status = status
        before = self._counted
        if before is not None and status.uptime_seconds == before.uptime_seconds:
            return
        if before is None or status.uptime_seconds < before.uptime_seconds:
            # It is new to us, or was started anew: its counts began at zero.
            before = type(status)()
        self.heard, self._counted = at, status
        self.rates = _between(before, status)


def _between(before: Any, after: Any) -> Rates:
    seconds = after.uptime_seconds - before.uptime_seconds
    if seconds <= 0:
        return Rates()
    busy = min(1.0, max(0.0, after.busy_seconds - before.busy_seconds) / seconds)
    if isinstance(after, drafter_pb2.DrafterStatusResponse):
        return Rates(busy=busy)

    def more(count: str) -> float:
        return max(0.0, float(getattr(after, count) - getattr(before, count)))

    steps, session_steps = more("steps"), more("session_steps")
    rows = max(0.0, more("rows") - more("drafted_tokens"))
    return Rates(
        busy=busy,
        rows=busy * rows / steps if steps else 0.0,
        wanted=more("wanted_trees") / seconds,
        missing=more("missing_trees") / seconds,
        wanting=min(1.0, more("wanted_trees") / session_steps) if session_steps else 0.0,
    )
