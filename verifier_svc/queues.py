"""How many requests wait at each gateway, so that every gateway knows of all queues.

A gateway knows its own queue only, and verifiers are what all gateways have in common: each says how long its
queue is whenever it asks for a status, and hears how long the others' are.
"""

from __future__ import annotations

import time
from collections.abc import Callable

# A gateway that has not asked for so long has no queue any more.
_FORGET_SECONDS = 10.0
# Gateways that are remembered, and the longest queue that is believed.
_MOST_GATEWAYS = 256
_LONGEST_QUEUE = 100_000


class GatewayQueues:
    """On the event loop."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        # By the gateway's id: requests that wait there, and when it said so.
        self._said: dict[str, tuple[int, float]] = {}

    def heard(self, gateway_id: str, waiting: int) -> None:
        """Note what a gateway says. One too many is not noted."""
        self._forget()
        if gateway_id in self._said or len(self._said) < _MOST_GATEWAYS:
            self._said[gateway_id] = min(waiting, _LONGEST_QUEUE), self._clock()

    def elsewhere(self, gateway_id: str) -> int:
        """Requests that wait at other gateways."""
        self._forget()
        return sum(waiting for name, (waiting, _) in self._said.items() if name != gateway_id)

    def _forget(self) -> None:
        oldest = self._clock() - _FORGET_SECONDS
        self._said = {name: said for name, said in self._said.items() if said[1] >= oldest}
