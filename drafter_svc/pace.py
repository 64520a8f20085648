"""When a verifier's next verdicts are to be expected."""

from __future__ import annotations

import time
from collections.abc import Callable

# Share of a new measurement in the mean.
_WEIGHT = 0.2
# Share of the time between verdicts that may be spent on what they did not ask for.
_SHARE = 0.75


class Pace:
    """The time between a verifier's messages with verdicts."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._mean = 0.0
        self._last = 0.0

    def heard(self) -> None:
        """Verdicts came."""
        now = self._clock()
        if self._last:
            self._mean += (_WEIGHT if self._mean else 1.0) * (now - self._last - self._mean)
        self._last = now

    def leaves(self, seconds: float) -> bool:
        """Whether work of so many seconds that begins now will probably be done before the next verdicts."""
        return self._clock() - self._last + seconds < _SHARE * self._mean
