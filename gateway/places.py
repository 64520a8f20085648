"""Places for sessions, at this gateway and at verifiers, and the line of those who wait for them."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from gateway import metrics
from gateway.errors import OVERLOADED, UNAVAILABLE, RequestError
from gateway.fleet import Fleet
from gateway.line import Line, may_wait
from gateway.pod import Pod
from gateway.routing.texts import RoutedText
from gateway.routing.verifiers import Choice, choose_verifier

# How often a waiting session checks whether any verifier is up.
_LOOK_SECONDS = 1.0


@dataclass(slots=True)
class _Waiting:
    seat: Seat
    text: RoutedText
    avoid: Collection[str]
    given: asyncio.Future[Pod]


class Places:
    """Gives each session a place: one of this gateway's `max_sessions` together with one at a verifier.

    Sessions without a place wait in line, key holders in turn. Sessions that must move go before new ones.
    The number that may wait is bounded, for each holder and for all.
    """

    def __init__(
        self,
        fleet: Fleet,
        *,
        model_id: str,
        max_sessions: int,
        max_waiting: int,
        queue_seconds: float,
        retry_seconds: Callable[[int, int], float],
    ) -> None:
        """`queue_seconds`: how long a new session waits while verifiers are up and full.

        `retry_seconds`: the retry time for a refused client, by how many wait and how many places there are.
        """
        self.running = 0
        self.queue_seconds = queue_seconds
        self._fleet = fleet
        self._model_id = model_id
        self._max_sessions = max_sessions
        self._max_waiting = max_waiting
        self._retry_seconds = retry_seconds
        self._moving: Line[_Waiting] = Line()
        self._new: Line[_Waiting] = Line()
        self._without: Counter[str] = Counter()
        self._numbers = itertools.count()
        fleet.on_change(self.give_out)
        metrics.QUEUED_REQUESTS.labels(queue="place").set_function(lambda: len(self._moving) + len(self._new))
        fleet.say_waiting(lambda: len(self._moving) + len(self._new))

    @contextmanager
    def seat(self, holder: str, *, begun: bool = False, priority: int = 0) -> Iterator[Seat]:
        """A session's seat while the block runs: first in the line, then here and at verifiers.

        `begun`: the session has run before, at another gateway. `priority`: of the holder's new sessions in
        line the lowest is served first. Raises `RequestError` if too many wait.
        """
        waiting = self._without.total()
        if not begun and not may_wait(self._without[holder], waiting, self._max_waiting):
            raise self._overloaded(f"{waiting} requests wait here already")
        seat = Seat(self, holder, next(self._numbers), begun=begun, priority=priority)
        self._without[holder] += 1
        try:
            yield seat
        finally:
            seat.leave()
            if seat.running:
                self.running -= 1
                metrics.SESSIONS.set(self.running)
                self.give_out()
            else:
                self._forget(holder)

    def ask(self, seat: Seat, text: RoutedText, avoid: Collection[str]) -> asyncio.Future[Pod]:
        """Put `seat` in line for a place at a verifier, unless it stands there already: what it is given."""
        if seat.asked is None:
            seat.asked = asyncio.get_running_loop().create_future()
            line = self._moving if seat.begun or seat.running else self._new
            line.join(seat.holder, seat.number, _Waiting(seat, text, avoid, seat.asked), seat.priority)
            self.give_out()
        return seat.asked

    def take_back(self, seat: Seat) -> None:
        """Undo `ask`. Idempotent."""
        asked, seat.asked = seat.asked, None
        if asked is None:
            return
        for line in (self._moving, self._new):
            line.leave(seat.holder, seat.number)
        if asked.done():
            asked.result().end()
        self.give_out()

    async def wait(self, seat: Seat, text: RoutedText, avoid: Collection[str], deadline: float) -> Pod:
        """Wait for a place for `seat`, which has none: see `Seat.verifier`."""
        try:
            given = self.ask(seat, text, avoid)
            while not given.done():
                left = self._until(seat, deadline) - time.monotonic()
                if left <= 0:
                    raise self._refusal(seat)
                await asyncio.wait({given}, timeout=min(left, _LOOK_SECONDS))
        except BaseException:
            seat.leave()
            raise
        seat.pod, seat.asked = given.result(), None
        return seat.pod

    def _until(self, seat: Seat, deadline: float) -> float:
        return deadline if seat.begun or not self._up() else seat.until

    def _up(self) -> int:
        """Number of places at verifiers that are up, taken or free."""
        views = self._fleet.verifier_views()
        return sum(
            pod.max_sessions
            for pod in views
            if pod.healthy and not pod.draining and pod.model_id == self._model_id
        )

    def give_out(self) -> None:
        """Give free places to those first in line."""
        while True:
            line = self._moving if len(self._moving) else self._new
            waiting = line.first()
            if waiting is None or (line is self._new and self.running >= self._max_sessions):
                return
            views = self._fleet.verifier_views()
            choice = choose_verifier(views, self._model_id, waiting.text, waiting.avoid)
            if choice is None:
                return
            line.serve()
            pod = self._fleet.verifiers[choice.verifier.address]
            self._take(waiting.seat, pod)
            pod.send(waiting.text)
            waiting.seat.choice = choice
            metrics.ROUTED_SESSIONS.labels(reason=choice.reason).inc()
            metrics.ROUTED_TOKENS.inc(waiting.text.tokens)
            metrics.ROUTED_HELD_TOKENS.inc(choice.held_tokens)
            waiting.given.set_result(pod)

    def _take(self, seat: Seat, pod: Pod) -> None:
        pod.begin()
        if not seat.running:
            seat.running = True
            self._forget(seat.holder)
            self.running += 1
            metrics.SESSIONS.set(self.running)

    def _forget(self, holder: str) -> None:
        self._without[holder] -= 1
        if not self._without[holder]:
            del self._without[holder]

    def _refusal(self, seat: Seat) -> RequestError:
        if seat.begun or not self._up():
            return RequestError(UNAVAILABLE, "no verifier has room for this session; try again later")
        return self._overloaded(
            f"all places are taken, and none was free within {self.queue_seconds:g} seconds"
        )

    def _overloaded(self, why: str) -> RequestError:
        places = min(self._max_sessions, self._up())
        metrics.REFUSED_REQUESTS.labels(reason="places").inc()
        return RequestError(
            OVERLOADED,
            f"{why}; try again later",
            retry_after=self._retry_seconds(len(self._new), places),
            for_room=True,
        )


class Seat:
    """One session's places: one here from its first verifier on, and one at its current verifier."""

    def __init__(self, places: Places, holder: str, number: int, *, begun: bool, priority: int = 0) -> None:
        self.holder = holder
        self.number = number
        self.priority = priority
        # End of its wait for a place, on the monotonic clock.
        self.until = time.monotonic() + places.queue_seconds
        # Whether its client has been sent anything.
        self.begun = begun
        # Whether it has had a place, and counts among the gateway's sessions. Either puts it before new ones.
        self.running = False
        # Its place at a verifier, and the one that it stands in line for, or has been given since.
        self.pod: Pod | None = None
        self.asked: asyncio.Future[Pod] | None = None
        # Why its last verifier was chosen.
        self.choice: Choice | None = None
        self._places = places

    async def verifier(self, text: RoutedText, avoid: Collection[str], deadline: float) -> Pod:
        """Wait for a place at the best verifier for `text`; one in `avoid` is taken only if it is the last.

        A new session waits for `queue_seconds` from its arrival. One that has begun, and any while no
        verifier is up, waits until `deadline` (on the monotonic clock). Raises `RequestError`.
        """
        return await self._places.wait(self, text, avoid, deadline)

    def has_another(self, text: RoutedText, avoid: Collection[str]) -> bool:
        """Whether there is a place for it beside the one that it has; `verifier` then returns it at once.

        From the first call on it stands in line for one. `text` and `avoid`: as of `verifier`.
        """
        return self._places.ask(self, text, avoid).done()

    def leave_verifier(self) -> None:
        """Free the place that it has. The one that it stands in line for stays its own. Idempotent."""
        if self.pod is not None:
            self.pod.end()
            self.pod = None
            self._places.give_out()

    def leave(self) -> None:
        """Free every place at a verifier, and leave the line. Idempotent."""
        self._places.take_back(self)
        self.leave_verifier()

    def turned_away(self, pod: Pod) -> None:
        """Note that the verifier refused the session as full. The session keeps its place in the line."""
        pod.full()
