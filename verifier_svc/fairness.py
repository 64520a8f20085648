"""A share of the event loop's time for unasked work, divided fairly between peers."""

from __future__ import annotations

import asyncio
import heapq
import time
from collections.abc import Callable

# Peers whose places are remembered; beyond that, places that have been passed are forgotten.
_MAX_PLACES = 1024


class FairQueue:
    """Start-time fair queueing of work that has been done and is paid for by waiting. Knows no asyncio.

    Each second `share` seconds of work pass; after a rest `burst` seconds pass at once. Peers that wait are
    served equally, however many streams or messages each has.
    """

    def __init__(self, *, share: float, burst: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._share = share
        self._burst = burst
        self._clock = clock
        self._level = burst
        self._filled_at = clock()
        # The place of the ticket that was served last, and each peer's next place, in seconds of work.
        self._now = 0.0
        self._places: dict[str, float] = {}
        self._order: list[tuple[float, int]] = []
        self._waiting: dict[int, float] = {}
        self._tickets = 0

    def ask(self, peer: str, seconds: float) -> int | None:
        """A ticket with which `peer` waits for `seconds` of work; None when it need not wait."""
        self._fill()
        place = max(self._now, self._places.get(peer, 0.0))
        self._places[peer] = place + seconds
        if len(self._places) > _MAX_PLACES:
            self._places = {name: at for name, at in self._places.items() if at > self._now}
        if not self._waiting and self._level > 0:
            self._pass(place, seconds)
            return None
        self._tickets += 1
        self._waiting[self._tickets] = seconds
        heapq.heappush(self._order, (place, self._tickets))
        return self._tickets

    def owe(self, peer: str, seconds: float) -> None:
        """`seconds` of work were done for a peer that cannot wait for them, because it is gone."""
        self._fill()
        self._places[peer] = max(self._now, self._places.get(peer, 0.0)) + seconds
        self._level -= seconds

    def drop(self, ticket: int) -> None:
        """Nobody waits with `ticket` any more."""
        self._waiting.pop(ticket, None)
        if len(self._order) > 2 * len(self._waiting) + 64:
            self._order = [entry for entry in self._order if entry[1] in self._waiting]
            heapq.heapify(self._order)

    def serve(self) -> int | None:
        """The ticket whose turn it is; None when it is nobody's turn yet."""
        self._fill()
        while self._order and self._order[0][1] not in self._waiting:
            heapq.heappop(self._order)
        if not self._order or self._level <= 0:
            return None
        place, ticket = heapq.heappop(self._order)
        self._pass(place, self._waiting.pop(ticket))
        return ticket

    def due_in(self) -> float | None:
        """Seconds until `serve` has a ticket; None when nobody waits."""
        if not self._waiting:
            return None
        self._fill()
        return max(0.0, -self._level / self._share)

    def _pass(self, place: float, seconds: float) -> None:
        self._now = max(self._now, place)
        self._level -= seconds

    def _fill(self) -> None:
        now = self._clock()
        self._level = min(self._burst, self._level + self._share * (now - self._filled_at))
        self._filled_at = now


class WorkBudget:
    """`FairQueue` for coroutines of one event loop."""

    def __init__(self, *, share: float, burst: float) -> None:
        """See `FairQueue`."""
        self._queue = FairQueue(share=share, burst=burst)
        self._waiters: dict[int, asyncio.Future[None]] = {}
        self._timer: asyncio.TimerHandle | None = None

    async def pay(self, peer: str, seconds: float) -> None:
        """Wait for `seconds` of work that were done for `peer`; then it may cause more."""
        ticket = self._queue.ask(peer, seconds)
        if ticket is None:
            return
        waiter = self._waiters[ticket] = asyncio.get_running_loop().create_future()
        self._wait()
        try:
            await waiter
        finally:
            self._waiters.pop(ticket, None)
            self._queue.drop(ticket)

    def owe(self, peer: str, seconds: float) -> None:
        """Charge `seconds` of work to a peer that does not wait."""
        self._queue.owe(peer, seconds)

    def _wait(self) -> None:
        due = self._queue.due_in()
        if self._timer is None and due is not None:
            # A timer that fires too early would find nobody's turn.
            self._timer = asyncio.get_running_loop().call_later(due + 0.001, self._serve)

    def _serve(self) -> None:
        self._timer = None
        while (ticket := self._queue.serve()) is not None:
            waiter = self._waiters.get(ticket)
            if waiter is not None and not waiter.done():
                waiter.set_result(None)
        self._wait()
