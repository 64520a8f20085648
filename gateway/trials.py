"""Constraints are tried before their requests are let in: one at a time, key holders in turn."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from gateway.errors import OVERLOADED, RequestError, invalid
from gateway.line import Line
from paceline.constraints.constraint import Constraint, ConstraintError
from paceline.constraints.trial import Trial

# A trial's turn comes within this time, or not at all.
_SECONDS = 20.0


class Trials:
    """A holder of costly constraints delays other holders' by one trial at most."""

    def __init__(self, trial: Trial) -> None:
        self._trial = trial
        self._line: Line[asyncio.Future[None]] = Line()
        self._numbers = itertools.count()
        self._busy = False

    async def run(self, constraint: Constraint, field: str, holder: str) -> None:
        """Raises `RequestError` that names `field` for a constraint that cannot be held."""
        try:
            constraint.check()
            if not self._trial.knows(constraint):
                async with self._turn(holder):
                    await self._trial.run(constraint)
            await self._trial.run(constraint)
        except ConstraintError as error:
            raise refused(field, error) from None

    async def close(self) -> None:
        """End the process that tries them."""
        await self._trial.close()

    @asynccontextmanager
    async def _turn(self, holder: str) -> AsyncIterator[None]:
        number, turn = next(self._numbers), asyncio.get_running_loop().create_future()
        self._line.join(holder, number, turn)
        self._serve()
        try:
            async with asyncio.timeout(_SECONDS):
                await asyncio.wait({turn})
        except BaseException as error:
            self._line.leave(holder, number)
            if turn.done():
                self._release()
            if isinstance(error, TimeoutError):
                raise RequestError(OVERLOADED, "too many constraints wait to be compiled") from None
            raise
        try:
            yield
        finally:
            self._release()

    def _release(self) -> None:
        self._busy = False
        self._serve()

    def _serve(self) -> None:
        turn = None if self._busy else self._line.first()
        if turn is not None:
            self._line.serve()
            self._busy = True
            turn.set_result(None)


def refused(field: str, error: ConstraintError) -> RequestError:
    """The error of a constraint that cannot be held."""
    return RequestError(invalid("invalid_value"), f"{field}: {error}", field)
