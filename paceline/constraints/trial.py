"""Constraints are tried in a process of their own: what hangs, swells or crashes there harms nothing else.

The compiler's own limits are units of its work, and some inputs take long before they count. A trial has a
bound in seconds of a CPU and one in bytes, and whoever passes compiles as fast elsewhere.
"""

from __future__ import annotations

import asyncio
import json
import sys
from asyncio.subprocess import PIPE, Process
from collections import OrderedDict
from contextlib import suppress
from typing import Final

from paceline.constraints.constraint import Constraint, ConstraintError
from paceline.constraints.tried import BYTES, CPU_SECONDS
from paceline.service import telemetry

log = telemetry.logger(__name__)

# Where the machine is so busy that the process gets no CPU.
_CLOCK_SECONDS: Final = 30.0
_CHILD: Final = "paceline.constraints.tried"
# Results that are remembered; the texts of refused constraints are kept with them.
_MOST_REMEMBERED: Final = 256


class Trial:
    """Tries constraints one after another. On the event loop."""

    def __init__(self, cpu_seconds: float = CPU_SECONDS) -> None:
        """`cpu_seconds`: what one constraint may take."""
        self._cpu_seconds = cpu_seconds
        self._child: Process | None = None
        self._turn = asyncio.Lock()
        self._results: OrderedDict[Constraint, str | None] = OrderedDict()

    def knows(self, constraint: Constraint) -> bool:
        """Whether it has been tried, and its result is remembered."""
        return constraint in self._results

    async def run(self, constraint: Constraint) -> None:
        """Raises `ConstraintError` for one that allows nothing or cannot be compiled within bounds."""
        constraint.check()
        async with self._turn:
            if constraint not in self._results:
                self._remember(constraint, await self._tried(constraint))
            self._results.move_to_end(constraint)
            problem = self._results[constraint]
        if problem is not None:
            raise ConstraintError(problem)

    async def close(self) -> None:
        """End the process, if there is one."""
        child, self._child = self._child, None
        if child is not None and child.returncode is None:
            with suppress(ProcessLookupError):
                child.kill()
            await child.wait()

    def _remember(self, constraint: Constraint, problem: str | None) -> None:
        self._results[constraint] = problem
        if len(self._results) > _MOST_REMEMBERED:
            self._results.popitem(last=False)

    async def _tried(self, constraint: Constraint) -> str | None:
        try:
            child = await self._started()
            assert child.stdin is not None
            assert child.stdout is not None
            child.stdin.write(json.dumps(constraint.plain()).encode() + b"\n")
            await child.stdin.drain()
            async with asyncio.timeout(_CLOCK_SECONDS):
                reply = await child.stdout.readline()
        except (TimeoutError, ConnectionError):
            reply = b""
        except asyncio.CancelledError:
            # Its answer would be taken for the next one's.
            await self.close()
            raise
        if not reply:
            await self.close()
            log.warning("a constraint is too costly to compile", kind=constraint.kind)
            bounds = f"{self._cpu_seconds:g} s or {BYTES >> 20} MiB"
            return f"takes more than {bounds} to compile; a simpler one may be served"
        problem: str | None = json.loads(reply)
        return problem

    async def _started(self) -> Process:
        if self._child is None or self._child.returncode is not None:
            self._child = await asyncio.create_subprocess_exec(
                sys.executable, "-m", _CHILD, f"{self._cpu_seconds}", stdin=PIPE, stdout=PIPE
            )
        return self._child
