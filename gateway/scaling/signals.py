"""What scaling knows of a pool at one time: sums over its pods, and what one pod bears."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import TypeVar


@dataclass(frozen=True, slots=True)
class VerifierSignals:
    """The verifiers of one pool. More of any field is more load, but for `full_rows` and `max_sessions`."""

    # Rows computed at a time, tree nodes left out: the mean over all time, idle time with none.
    rows: float = 0.0
    # KV that sessions hold, in pods' worth.
    kv: float = 0.0
    # Sessions open here, whether or not they hold KV.
    sessions: float = 0.0
    # Those who wait: requests for a place at a verifier, and sessions that are open for room in the KV.
    queued: float = 0.0
    without_kv: float = 0.0
    # What each session that runs takes.
    rows_each: float = 1.0
    kv_each: float = 0.0
    # What one pod bears; 0 while no pod has said it.
    full_rows: float = 0.0
    max_sessions: float = 0.0


@dataclass(frozen=True, slots=True)
class DrafterSignals:
    """The drafters of one pool, and the verifiers' need of them. More of any field is more load."""

    # Pods that draft.
    pods: float = 0.0
    # Sum of the shares of their time in which they work.
    busy: float = 0.0
    # That share of the drafter that works least. One that has just come works little: sessions keep the
    # drafter that they have.
    least_busy: float = 0.0
    # Steps of sessions a second for which a tree is expected to pay, and of these those without one in time.
    wanted: float = 0.0
    missing: float = 0.0
    # Sessions for which a tree is expected to pay, and all that run.
    drafting: float = 0.0
    sessions: float = 0.0
    # What one pod bears; 0 while no pod has said it.
    max_sessions: float = 0.0

    @property
    def starvation(self) -> float:
        """The share of steps that wanted a tree and had none in time."""
        return min(1.0, self.missing / self.wanted) if self.wanted > 0 else 0.0


S = TypeVar("S", VerifierSignals, DrafterSignals)


def mean(signals: Sequence[S]) -> S:
    """The mean of each field."""
    names = [field.name for field in fields(signals[0])]
    count = len(signals)
    return type(signals[0])(**{name: sum(getattr(each, name) for each in signals) / count for name in names})
