"""Limits while Redis is away: this gateway's own counts take over until it is back."""

from __future__ import annotations

from collections.abc import Sequence

from gateway.limits.base import Admission, Ask, Ledger, LedgerUnavailableError, Outcome, Settlement
from gateway.limits.memory import MemoryLedger
from paceline.service import telemetry

log = telemetry.logger(__name__)


class FallbackLedger:
    """A shared ledger while it answers, else this gateway's own counts, which are kept all the time.

    So each gateway at least keeps the limits by itself. Only `settle` tries a shared ledger that does not
    answer, so no request waits for it.
    """

    def __init__(self, shared: Ledger, own: MemoryLedger | None = None) -> None:
        self._shared = shared
        self._own = own or MemoryLedger()
        self._away = False

    async def admit(self, ask: Ask) -> Admission:
        if not self._away:
            try:
                admission = await self._shared.admit(ask)
            except LedgerUnavailableError as error:
                self._lose(error)
            else:
                if admission.outcome is Outcome.ADMITTED:
                    self._own.hold(ask)
                return admission
        return await self._own.admit(ask)

    async def settle(self, settlements: Sequence[Settlement]) -> None:
        await self._own.settle(settlements)
        try:
            await self._shared.settle(settlements)
        except LedgerUnavailableError as error:
            self._lose(error)
        else:
            if self._away:
                log.info("limits are shared again")
            self._away = False

    async def close(self) -> None:
        await self._shared.close()

    def _lose(self, error: LedgerUnavailableError) -> None:
        if not self._away:
            log.warning("limits are this gateway's own for now", error=str(error))
        self._away = True
