"""One service as a process on this machine: ends with its parent, logs to a file, and is always stopped."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from paceline.service import tether

_POLL_S = 0.1


@dataclass(frozen=True, slots=True)
class Service:
    """A command to run, and the probe that tells when it is ready."""

    name: str
    command: tuple[str, ...]
    ready: Callable[[], Awaitable[bool]]
    start_timeout_s: float = 300.0
    # Additional environment variables. Secrets go here: other users see flags in a list of processes.
    variables: Mapping[str, str] = field(default_factory=dict)


class ServiceDiedError(Exception):
    """A service ended, or did not become ready in time; the message holds the end of its log."""


class LocalProcess:
    """A running `Service`. Create it from the main thread (see `tether`)."""

    def __init__(self, service: Service, process: asyncio.subprocess.Process, log: Path) -> None:
        self.service = service
        self.log = log
        self._process = process

    @classmethod
    async def start(cls, service: Service, log: Path) -> LocalProcess:
        """Start it in a process group of its own, appending both outputs to `log`."""
        with log.open("ab") as output:
            process = await asyncio.create_subprocess_exec(
                *tether.command(service.command),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                env={**os.environ, **service.variables},
            )
        return cls(service, process, log)

    @property
    def pid(self) -> int:
        """Process id, also of the group."""
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether the process still runs."""
        return self._process.returncode is None

    async def wait(self) -> int:
        """Its exit status once it ends; negative is the signal that ended it."""
        return await self._process.wait()

    async def until_ready(self) -> None:
        """Return when it is ready. Raises `ServiceDiedError` when it ends first or takes too long."""
        name = self.service.name
        try:
            async with asyncio.timeout(self.service.start_timeout_s):
                while not await self.service.ready():
                    if not self.running:
                        raise ServiceDiedError(self.obituary())
                    await asyncio.sleep(_POLL_S)
        except TimeoutError:
            raise ServiceDiedError(
                f"{name} is not ready after {self.service.start_timeout_s:g} s\n{self.last_words()}"
            ) from None
        if not self.running:  # something else answered at its address
            raise ServiceDiedError(self.obituary())

    def obituary(self) -> str:
        """How the process ended, and the last lines of its log."""
        status = self._process.returncode or 0
        how = f"was killed by {_signal_name(-status)}" if status < 0 else f"ended with status {status}"
        return f"{self.service.name} {how}\n{self.last_words()}"

    def last_words(self, lines: int = 12) -> str:
        """The end of its log, and where the log is."""
        text = self.log.read_bytes()[-20_000:].decode(errors="replace").strip()
        return "\n".join([*text.splitlines()[-lines:], f"log: {self.log}"])

    async def stop(self, grace_s: float) -> None:
        """SIGTERM, then SIGKILL for its whole group after `grace_s`; returns when it is gone."""
        try:
            if self.running:
                with suppress(ProcessLookupError):
                    self._process.terminate()
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._process.wait(), grace_s)
        finally:
            self.kill()
            await self._process.wait()

    def kill(self) -> None:
        """SIGKILL it and whatever it started."""
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
