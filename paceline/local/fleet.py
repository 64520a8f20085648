"""A whole fleet on this machine: started in order, kept running, stopped without leftovers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Protocol

from paceline.local.process import LocalProcess, Service, ServiceDiedError

_GRACE_S = 8.0


class ServiceState(StrEnum):
    """State of a service, for display."""

    WAITING = "waiting"
    STARTING = "starting"
    READY = "ready"
    RESTARTING = "restarting"
    STOPPED = "stopped"
    FAILED = "failed"


class OnChange(Protocol):
    """Called at every change of a service's state; `detail` is for people and may have several lines."""

    def __call__(self, name: str, state: ServiceState, detail: str = "") -> None:
        """Must not raise."""


@dataclass(frozen=True, slots=True)
class RestartPolicy:
    """How often a service that ends is started again, and how long to wait before."""

    attempts: int = 5
    first_delay_s: float = 0.5
    max_delay_s: float = 10.0
    # Seconds of running after which a service's failures are forgotten.
    settled_s: float = 60.0

    def delay(self, failures: int) -> float:
        """Seconds to wait before start number `failures` in a row; doubles from the first."""
        return min(self.first_delay_s * 2.0 ** (failures - 1), self.max_delay_s)


@dataclass(slots=True)
class _Kept:
    service: Service
    process: LocalProcess | None = None
    started: float = field(default_factory=time.monotonic)


class LocalFleet:
    """Runs `waves` of services: a wave starts when the one before is ready, and stops before it.

    Use from the main thread. `start`, then `keep` for as long as the fleet should serve, then `stop`.
    """

    def __init__(
        self,
        waves: Sequence[Sequence[Service]],
        logs: Path,
        on_change: OnChange,
        *,
        policy: RestartPolicy | None = None,
    ) -> None:
        self._waves = [[_Kept(service) for service in wave] for wave in waves]
        self._logs = logs
        self._on_change = on_change
        self._policy = policy or RestartPolicy()

    @property
    def pids(self) -> dict[str, int]:
        """Process ids of the services that run now, by name."""
        return {
            kept.service.name: kept.process.pid
            for kept in self._all()
            if kept.process is not None and kept.process.running
        }

    async def start(self) -> None:
        """Start every service and wait until each is ready. Raises `ServiceDiedError`."""
        self._logs.mkdir(parents=True, exist_ok=True)
        for wave in self._waves:
            await _all_or_first_error([self._start(kept) for kept in wave])

    async def keep(self) -> None:
        """Restart what ends, for ever. Raises `ServiceDiedError` when one service keeps ending."""
        await _all_or_first_error([self._keep(kept) for kept in self._all()])

    async def stop(self) -> None:
        """Stop everything, last wave first; nothing is left running when this returns or is cancelled."""
        try:
            for wave in reversed(self._waves):
                await asyncio.gather(*(self._stop(kept) for kept in wave))
        finally:
            self.kill()

    def kill(self) -> None:
        """SIGKILL everything at once."""
        for kept in self._all():
            if kept.process is not None:
                kept.process.kill()

    def _all(self) -> list[_Kept]:
        return [kept for wave in self._waves for kept in wave]

    async def _start(self, kept: _Kept) -> None:
        name = kept.service.name
        self._on_change(name, ServiceState.STARTING)
        kept.started = time.monotonic()
        # Shielded: a start that is cancelled half-way would leave a process that nobody knows.
        starting = asyncio.ensure_future(LocalProcess.start(kept.service, self._logs / f"{name}.log"))
        try:
            await asyncio.shield(starting)
        finally:
            kept.process = await starting
        try:
            await kept.process.until_ready()
        except ServiceDiedError:
            self._on_change(name, ServiceState.FAILED)
            raise
        self._on_change(name, ServiceState.READY, f"{time.monotonic() - kept.started:.1f} s")

    async def _keep(self, kept: _Kept) -> None:
        failures = 0
        while True:
            assert kept.process is not None
            await kept.process.wait()
            last = kept.process.obituary()
            failures = 1 if time.monotonic() - kept.started > self._policy.settled_s else failures + 1
            while True:
                if failures > self._policy.attempts:
                    self._on_change(kept.service.name, ServiceState.FAILED, last)
                    raise ServiceDiedError(f"{kept.service.name} keeps ending; giving up\n{last}")
                self._on_change(kept.service.name, ServiceState.RESTARTING, last)
                await asyncio.sleep(self._policy.delay(failures))
                try:
                    await self._start(kept)
                    break
                except ServiceDiedError as error:
                    last = str(error)
                    await kept.process.stop(grace_s=0)
                    failures += 1

    async def _stop(self, kept: _Kept) -> None:
        if kept.process is not None:
            await kept.process.stop(_GRACE_S)
            self._on_change(kept.service.name, ServiceState.STOPPED)


async def _all_or_first_error(coroutines: Sequence[Coroutine[None, None, None]]) -> None:
    """Run all; the first failure cancels the others and is raised as itself, not in a group."""
    tasks = [asyncio.ensure_future(coroutine) for coroutine in coroutines]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
