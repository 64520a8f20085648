"""What was needed over the last minutes, as plain values; nothing here has a clock of its own."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

# The share of the time that the pods which stay must have been enough for.
_QUANTILE = 0.95


@dataclass(frozen=True, slots=True)
class Needed:
    """How many pods, in parts of one, the load at some time needed."""

    at: float
    replicas: float


@dataclass(frozen=True, slots=True)
class History:
    """One pool's past. Times are seconds of one monotonic clock."""

    # Since when the load is recorded without a gap.
    since: float
    needed: tuple[Needed, ...] = ()
    # When more pods were last recommended.
    scaled_out: float = -math.inf
    # Drafters: how many starved, and the least wanted trees a second at which they did.
    starved: Mapping[int, float] = field(default_factory=dict)
    # Drafters: since when none is recommended; infinite while some are.
    zero_since: float = math.inf

    def with_need(self, at: float, replicas: float, *, keep_seconds: float) -> History:
        """The past with one more moment, without what is older than `keep_seconds`."""
        kept = tuple(each for each in self.needed if each.at > at - keep_seconds)
        return replace(self, needed=(*kept, Needed(at, replicas)))

    def after(self, at: float, before: int, now: int, needed: float, *, keep_seconds: float) -> History:
        """The past with a recommendation of `now` pods; `before`: the last one, `needed`: what was needed."""
        return replace(
            self.with_need(at, needed, keep_seconds=keep_seconds),
            scaled_out=at if now > before else self.scaled_out,
            zero_since=min(self.zero_since, at) if now == 0 else math.inf,
        )

    def with_starvation(self, pods: int, wanted: float, *, starving: bool) -> History:
        """The past with whether `pods` drafters, busy as they were, starved at `wanted` trees a second."""
        starved = dict(self.starved)
        known = starved.get(pods, math.inf)
        if starving:
            starved[pods] = min(known, wanted)
        elif wanted > known:
            del starved[pods]
        return replace(self, starved=starved)

    def covers(self, now: float, seconds: float) -> bool:
        """Whether the load is recorded for the last `seconds`."""
        return self.since <= now - seconds

    def most(self) -> float:
        """The highest need on record."""
        return max((each.replicas for each in self.needed), default=0.0)

    def p95(self) -> float:
        """The need that was not exceeded for 95 % of the moments on record."""
        ranked = sorted(each.replicas for each in self.needed)
        return ranked[math.ceil(_QUANTILE * len(ranked)) - 1] if ranked else 0.0
