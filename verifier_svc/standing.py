"""Which drafters are listened to: one that sends garbage, or never helps, is put aside for a while."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from paceline import telemetry

log = telemetry.logger(__name__)

# Trees that are judged together.
JUDGED_TREES = 32
# Steps with a tree of its that are judged together, and the accepted tokens that they must have in all: of
# drafters worth anything every second or third step has one.
_STEPS = 512
_ACCEPTED = 8
# The first time aside; each further time lasts twice as long.
_FIRST_SECONDS = 60.0
_LONGEST_SECONDS = 3600.0
# Names are the drafters' own, so no more of them are remembered.
_MAX_DRAFTERS = 1024


class Fault(StrEnum):
    """Why a drafter is put aside."""

    GARBAGE = "most of its trees break a rule"
    USELESS = "next to nothing of what it drafts is accepted"


@dataclass(slots=True)
class _Standing:
    sound: int = 0
    broken: int = 0
    steps: int = 0
    accepted: int = 0
    times: int = 0
    until: float = 0.0
    fault: Fault | None = None


class Standings:
    """Drafters by name. On the event loop."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._standings: OrderedDict[str, _Standing] = OrderedDict()

    def tree(self, drafter_id: str, *, sound: bool) -> None:
        """A tree came; `sound` where it broke no rule."""
        standing = self._of(drafter_id)
        if sound:
            standing.sound += 1
        else:
            standing.broken += 1
        if standing.sound + standing.broken >= JUDGED_TREES:
            if standing.broken > standing.sound:
                self._put_aside(drafter_id, standing, Fault.GARBAGE)
            standing.sound = standing.broken = 0

    def verified(self, drafter_id: str, accepted: int) -> None:
        """A step verified a tree of its, and accepted so many nodes."""
        standing = self._of(drafter_id)
        standing.steps += 1
        standing.accepted += accepted
        if standing.steps >= _STEPS:
            if standing.accepted < _ACCEPTED:
                self._put_aside(drafter_id, standing, Fault.USELESS)
            else:
                standing.times = 0
            standing.steps = standing.accepted = 0

    def fault(self, drafter_id: str) -> Fault | None:
        """Why the drafter is aside now; None if it is not."""
        standing = self._standings.get(drafter_id)
        return standing.fault if standing is not None and self._clock() < standing.until else None

    def aside(self) -> list[str]:
        """Names of the drafters that are aside now."""
        return sorted(name for name in self._standings if self.fault(name) is not None)

    def _of(self, drafter_id: str) -> _Standing:
        standing = self._standings.setdefault(drafter_id, _Standing())
        self._standings.move_to_end(drafter_id)
        if len(self._standings) > _MAX_DRAFTERS:
            self._standings.popitem(last=False)
        return standing

    def _put_aside(self, drafter_id: str, standing: _Standing, fault: Fault) -> None:
        seconds = min(_FIRST_SECONDS * 2**standing.times, _LONGEST_SECONDS)
        standing.times += 1
        standing.fault, standing.until = fault, self._clock() + seconds
        telemetry.DRAFTERS_PUT_ASIDE.labels(reason=fault.name.lower()).inc()
        log.warning("drafter put aside", drafter=drafter_id, reason=str(fault), seconds=seconds)
