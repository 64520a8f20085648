"""Sessions' records in the store: appended to, recorded again when lost, caught up when the store is back."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from paceline.service import telemetry
from paceline.store import (
    Append,
    BaseMismatchError,
    SessionStore,
    StoreError,
    StoreUnavailableError,
    UnknownSessionError,
)
from verifier_svc import metrics
from verifier_svc.commitments import Commitment, Commitments

log = telemetry.logger(__name__)

# How often a store that is away is asked for.
_RETRY_SECONDS = 0.2


class Recording:
    """Appends to sessions' records, and knows whether the store is away.

    While it is away, a task offers the store what it lacks, and no other append waits for it: with strict
    durability those of sessions that are held already, else all.
    """

    def __init__(
        self,
        store: SessionStore,
        commitments: Commitments,
        *,
        strict: bool,
        on_stop: Callable[[asyncio.Task[None]], None],
    ) -> None:
        """`on_stop` is called with the task when it ends."""
        self._store = store
        self._commitments = commitments
        self._strict = strict
        self._on_stop = on_stop
        self._away_since: float | None = None
        self._looking: asyncio.Task[None] | None = None

    async def write(self, batch: list[tuple[Commitment, Append]]) -> list[StoreError | None]:
        """What kept each session's ids from the store; what is left to the task does not wait for it."""
        errors: list[StoreError | None] = [StoreUnavailableError("it has not come back")] * len(batch)
        asked = [place for place, (session, _) in enumerate(batch) if not self._looked_after(session)]
        if asked:
            told = await self._append([batch[place] for place in asked])
            for place, error in zip(asked, told, strict=True):
                errors[place] = error
        return errors

    def cancel(self) -> None:
        """Look for the store no more."""
        if self._looking is not None:
            self._looking.cancel()

    def _looked_after(self, session: Commitment) -> bool:
        """Whether the task offers what the store lacks of the session."""
        return self._away_since is not None and (not self._strict or session.held_since is not None)

    async def _append(self, batch: list[tuple[Commitment, Append]]) -> list[StoreError | None]:
        with metrics.COMMIT_SECONDS.time():
            errors = await self._store.append([append for _, append in batch])
        away = next((error for error in errors if isinstance(error, StoreUnavailableError)), None)
        for place, (session, _) in enumerate(batch):
            # The epoch is this owner's: what else the record says, the store has from before it went back.
            if isinstance(errors[place], UnknownSessionError | BaseMismatchError):
                error = away or await self._restore(session)
                errors[place] = error
                if isinstance(error, StoreUnavailableError):
                    away = error
        if away is not None and self._away_since is None:
            self._lose(away)
        return errors

    async def _restore(self, session: Commitment) -> StoreError | None:
        try:
            # Of what has come since the append, too: only its emission waits for the next one.
            await self._store.restore(session.whole())
        except StoreError as error:
            return error
        log.warning("the store had lost a session, recorded anew", session=session.record.key.session_id)
        metrics.RECORDS_RESTORED.inc()
        return None

    def _lose(self, error: StoreError) -> None:
        self._away_since = time.monotonic()
        metrics.STORE_AWAY.set(1)
        log.warning("the session store is away", strict=self._strict, error=str(error))
        self._looking = asyncio.create_task(self._look())
        self._looking.add_done_callback(self._on_stop)

    async def _look(self) -> None:
        """Offer the store what it lacks until it takes all of that: one that answers may still not write."""
        while True:
            await asyncio.sleep(_RETRY_SECONDS)
            lacking = [(session, session.append()) for session in self._commitments.lacking()]
            lacking = [each for each in lacking if self._looked_after(each[0])]
            errors: list[StoreError | None] = []
            if lacking:
                errors = await self._append(lacking)
                for (session, append), error in zip(lacking, errors, strict=True):
                    self._commitments.settle(session, append, error)
            else:
                try:
                    await self._store.ping()
                except StoreUnavailableError as error:
                    errors = [error]
            if not any(isinstance(error, StoreUnavailableError) for error in errors):
                self._find()
                return
            # Those that are held may have waited long enough.
            self._commitments.wake()

    def _find(self) -> None:
        assert self._away_since is not None
        log.info("the session store is back", seconds=round(time.monotonic() - self._away_since, 1))
        self._away_since = None
        metrics.STORE_AWAY.set(0)
        for session in self._commitments.lacking():
            self._commitments.queue(session)
        self._commitments.wake()
