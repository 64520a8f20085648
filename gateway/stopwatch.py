"""What a session's time went to, as its client saw it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

from gateway.events import Chunk, Event, Finished, Started
from paceline.session import Receipt


class Stopwatch:
    """Made when the session is asked for; puts the times of queue, prefill and decoding in its receipt."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._began = self._opened = clock()
        # When the first and the last tokens so far came.
        self._first: float | None = None
        self._last = self._began

    def timed(self, event: Event) -> Event:
        """The event; the last one with the times in its receipt."""
        now = self._clock()
        match event:
            case Started():
                self._opened = now
            case Chunk(token_ids=ids) if ids:
                self._first = now if self._first is None else self._first
                self._last = now
            case Finished():
                return replace(event, receipt=self._timed(event.receipt))
            case _:
                # Text that waited for whole characters.
                pass
        return event

    def _timed(self, receipt: Receipt) -> Receipt:
        first = self._last if self._first is None else self._first
        return replace(
            receipt,
            queued_seconds=self._opened - self._began,
            prefill_seconds=max(0.0, first - self._opened),
            decode_seconds=self._last - first,
        )
