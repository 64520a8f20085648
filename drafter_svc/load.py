"""How much of its time a drafter works, as a count since its start."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager


class Load:
    """Measures the time in which a process works. Made on the event loop's thread; used from any.

    A drafter's work is on its event loop or, if its method computes, on the method's thread, perhaps waiting
    for a GPU there. Two clocks see what the other misses: the time between begin and end of a piece of work,
    which goes on while the process is throttled, and the event loop's CPU time, which has gRPC's part in it.
    """

    def __init__(self) -> None:
        self._started = time.monotonic()
        self._lock = threading.Lock()
        # Pieces of work under way, since when any is, and the time in which any was before that.
        self._working = 0
        self._since = 0.0
        self._worked = 0.0
        self._loop_clock = time.pthread_getcpuclockid(threading.get_ident())
        self._loop_cpu = time.clock_gettime(self._loop_clock)

    @property
    def uptime_seconds(self) -> float:
        """Seconds since the measurement began."""
        return time.monotonic() - self._started

    @property
    def busy_seconds(self) -> float:
        """Seconds of work since then, by the clock that has seen more of it."""
        with self._lock:
            worked = self._worked + (time.monotonic() - self._since if self._working else 0.0)
        return max(worked, time.clock_gettime(self._loop_clock) - self._loop_cpu)

    @contextmanager
    def working(self) -> Iterator[None]:
        """Count the block's time. Blocks may lie within one another, and side by side on two threads."""
        with self._lock:
            if not self._working:
                self._since = time.monotonic()
            self._working += 1
        try:
            yield
        finally:
            with self._lock:
                self._working -= 1
                if not self._working:
                    self._worked += time.monotonic() - self._since
