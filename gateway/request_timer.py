"""Counts and times one request's events for the metrics."""

from __future__ import annotations

import time
from collections.abc import Callable

from gateway import metrics
from gateway.events import Chunk, Event, Finished, Started


class RequestTimer:
    """Told of each event that a client is sent of one choice of its request.

    Time in the queue, of the prefill and of decoding follow one another: together they are the whole
    request's, up to what is said after the last token.
    """

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        *,
        came: float | None = None,
        exemplar: dict[str, str] | None = None,
    ) -> None:
        """`came`: when the request came, if not now. `exemplar`: labels that lead to the request's trace."""
        self._clock = clock
        self._exemplar = exemplar
        self._began = self._opened = clock() if came is None else came
        # When the first and the last tokens so far were sent.
        self._first: float | None = None
        self._last = self._began

    def saw(self, event: Event) -> None:
        """Note an event."""
        now = self._clock()
        match event:
            case Started():
                self._opened = now
                metrics.QUEUE_SECONDS.observe(now - self._began, self._exemplar)
            case Chunk(token_ids=ids) if ids:
                self._tokens(now, len(ids))
            case Finished():
                self._finished(now, event)
            case _:
                # Text that waited for whole characters.
                return

    def _tokens(self, now: float, count: int) -> None:
        if self._first is None:
            self._first = now
            metrics.FIRST_TOKEN_SECONDS.observe(now - self._began, self._exemplar)
            metrics.PREFILL_SECONDS.observe(now - self._opened, self._exemplar)
        else:
            metrics.INTER_TOKEN_SECONDS.observe((now - self._last) / count, self._exemplar)
        self._last = now

    def _finished(self, now: float, event: Finished) -> None:
        if self._first is not None:
            metrics.DECODE_SECONDS.observe(self._last - self._first, self._exemplar)
        metrics.E2E_SECONDS.observe(now - self._began, self._exemplar)
        metrics.REQUEST_SUCCESS.labels(finished_reason=str(event.reason)).inc()
