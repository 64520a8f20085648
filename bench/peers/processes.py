"""Put processes that are not measured to sleep, and prove that they slept.

Servers' threads spin while they wait for work. On a machine where all arms share the cores that would slow
whoever is measured, so the others are stopped for that time.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Running:
    """One process: whose child it is, its session and the processor time that it took."""

    pid: int
    parent: int
    session: int
    cpu_s: float


def members(session: int) -> list[int]:
    """Process ids of a session."""
    return [process.pid for process in _running() if process.session == session]


def stop(session: int) -> None:
    """Stop every process of a session where it is (SIGSTOP)."""
    _signal(session, signal.SIGSTOP)


def wake(session: int) -> None:
    """Let them go on (SIGCONT)."""
    _signal(session, signal.SIGCONT)


@contextmanager
def awake(session: int | None) -> Iterator[None]:
    """Let a stopped session run inside the block. None is nobody to wake."""
    if session is None:
        yield
        return
    wake(session)
    try:
        yield
    finally:
        stop(session)


def cpu_seconds_by_session() -> dict[int, float]:
    """Processor time so far of every session that a child of this process leads."""
    running = list(_running())
    mine = {process.pid for process in running if process.parent == os.getpid()}
    seconds: dict[int, float] = {}
    for process in running:
        if process.session in mine:
            seconds[process.session] = seconds.get(process.session, 0.0) + process.cpu_s
    return seconds


def _signal(session: int, number: int) -> None:
    for pid in members(session):
        with suppress(ProcessLookupError):
            os.kill(pid, number)


def _running() -> Iterator[Running]:
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError):  # it has ended meanwhile
                # The name, in brackets, may hold anything; the fields of proc(5) go on behind it.
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
                cpu_s = (int(fields[11]) + int(fields[12])) / _TICKS
                yield Running(int(entry.name), int(fields[1]), int(fields[3]), cpu_s)
