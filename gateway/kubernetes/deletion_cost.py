"""How dear each pod of the fleet is to lose, written where Kubernetes looks when it removes replicas.

The number is a function of what the pod says of itself, so all gateways write the same, in whatever order:
none leads. A write that changes nothing costs the API server no version and tells no watch.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager

from gateway.fleet import Fleet
from gateway.kubernetes.failures import why
from gateway.pod import Pod
from paceline.service import telemetry
from paceline.service.tasks import cancel_and_wait

log = telemetry.logger(__name__)

ANNOTATION = "controller.kubernetes.io/pod-deletion-cost"
# Share of the rounds in which everything is written.
_AGAIN = 0.05

# Sets annotations of the pod of that name. Blocks, and raises whatever goes wrong.
Annotate = Callable[[str, dict[str, str]], None]


def deletion_cost(sessions: int, written: int | None) -> int:
    """0 for an idle pod, otherwise a power of two near the number of its sessions.

    What is `written` stays while it is less than a factor of two away: it then ranks well enough.
    """
    if written and written < 2 * sessions and sessions < 2 * written:
        return written
    return 1 << (sessions.bit_length() - 1) if sessions else 0


class DeletionCosts:
    """Keeps the annotations up to date. Kubernetes asks not to be told of every change: they rank pods."""

    def __init__(self, fleet: Fleet, annotate: Annotate, seconds: float) -> None:
        """What has changed is written every so many seconds."""
        self._fleet = fleet
        self._annotate = annotate
        self._seconds = seconds
        # What was written last, by the pod.
        self._written: dict[Pod, int] = {}
        self._failing = False

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Write while the block runs. What fails is tried again the next time."""
        writing = asyncio.create_task(self._run())
        try:
            yield
        finally:
            await cancel_and_wait(writing)

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(self._seconds * random.uniform(0.8, 1.2))
            pods = [*self._fleet.verifiers.values(), *self._fleet.drafters.values()]
            # Sometimes all are written again, as somebody else may have changed one.
            again = random.random() < _AGAIN
            self._written = {pod: cost for pod, cost in self._written.items() if pod in pods and not again}
            # One that fails each time must not keep the same others from theirs.
            random.shuffle(pods)
            await self._write(pods)

    async def _write(self, pods: Iterable[Pod]) -> None:
        for pod in pods:
            # One that is being stopped has been chosen already.
            if not pod.endpoint.pod or pod.status is None or not pod.healthy or pod.draining:
                continue
            written = self._written.get(pod)
            cost = deletion_cost(pod.status.sessions, written)
            if cost == written:
                continue
            try:
                await asyncio.to_thread(self._annotate, pod.endpoint.pod, {ANNOTATION: str(cost)})
            except Exception as error:  # Whatever it is, sessions do not need it.
                self._failed(error)
                return
            self._written[pod], self._failing = cost, False

    def _failed(self, error: Exception) -> None:
        if not self._failing:
            log.warning("deletion cost of a pod is not written", why=why(error))
        self._failing = True
