"""Readiness: whether a request sent now would be served. Each change is logged once."""

from __future__ import annotations

from gateway.sessions import Sessions
from paceline.service import telemetry
from paceline.store import StoreUnavailableError

log = telemetry.logger(__name__)


class Readiness:
    """One gateway's readiness."""

    def __init__(self, sessions: Sessions) -> None:
        self.draining = False
        self._sessions = sessions
        self._noted: str | None = None

    async def problem(self) -> str:
        """Why it is not ready; empty if it is. Names no address, as anybody may read it."""
        problem, why = await self._problem()
        if problem != self._noted:
            self._noted = problem
            log.info("not ready" if problem else "ready for requests", **({"why": why} if why else {}))
        return problem

    async def _problem(self) -> tuple[str, str]:
        """The problem, and its text for the log."""
        if self.draining:
            return "draining", "draining"
        if problem := self._sessions.fleet.not_ready():
            return problem, problem
        if self._sessions.policy.strict:
            try:
                await self._sessions.store.ping()
            except StoreUnavailableError as error:
                return "the session store does not answer", str(error)
        return "", ""
