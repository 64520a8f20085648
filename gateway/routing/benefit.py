"""How much each drafter's trees have brought to this gateway's sessions."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

# After so many seconds a sample counts half: a drafter that was slow or unlucky is tried again.
_HALF_LIFE_SECONDS = 300.0
# Steps that make a session one whole sample, and the least that say anything.
_WHOLE_STEPS, _LEAST_STEPS = 32, 8
# Share of a new session in its verifier's mean.
_WEIGHT = 0.1
# Drafters remembered; beyond that, those of the least weight are forgotten.
_MOST = 1024
# Spread of single sessions: texts differ in how well they can be guessed.
_SPREAD = 1.0


@dataclass(frozen=True, slots=True)
class Benefit:
    """A drafter's record: what its sessions got more of accepted tokens per step than others there."""

    mean: float
    # Number of recent sessions that it stands for.
    weight: float

    @property
    def at_best(self) -> float:
        """The mean as high as it may well be, for so few sessions."""
        return self.mean + _SPREAD / math.sqrt(max(self.weight, 1e-9))


@dataclass(slots=True)
class _Record:
    mean: float
    weight: float
    at: float

    def decayed(self, now: float) -> float:
        return self.weight * math.pow(0.5, (now - self.at) / _HALF_LIFE_SECONDS)


class Benefits:
    """Records of all drafters, by address.

    Accepted tokens per step are what verifiers say of each step, trees that came late or not at all included.
    They depend on the verifier too, which asks for fewer nodes under load, so its mean is taken off.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._drafters: dict[str, _Record] = {}
        # Mean accepted tokens per step at each verifier.
        self._verifiers: dict[str, float] = {}

    def add(self, drafter: str, verifier: str, *, steps: int, accepted: int) -> None:
        """A session had `drafter` at `verifier` for `steps`, which accepted so many drafted tokens."""
        if steps < _LEAST_STEPS:
            return
        rate, now = accepted / steps, self._clock()
        usual = self._verifiers.get(verifier, rate)
        share = min(1.0, steps / _WHOLE_STEPS)
        self._verifiers[verifier] = usual + _WEIGHT * share * (rate - usual)
        record = self._drafters.setdefault(drafter, _Record(0.0, 0.0, now))
        weight = record.decayed(now) + share
        record.mean += share / weight * (rate - usual - record.mean)
        record.weight, record.at = weight, now
        self._bound(now)

    def of(self, drafter: str) -> Benefit | None:
        """The record of a drafter; None before its first session."""
        record = self._drafters.get(drafter)
        return None if record is None else Benefit(record.mean, record.decayed(self._clock()))

    def _bound(self, now: float) -> None:
        while len(self._drafters) > _MOST:
            del self._drafters[min(self._drafters, key=lambda each: self._drafters[each].decayed(now))]
        while len(self._verifiers) > _MOST:
            del self._verifiers[next(iter(self._verifiers))]
