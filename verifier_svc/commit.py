"""Commit, then emit: nothing reaches a client before the store has answered for it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from paceline import telemetry
from paceline.session import FinishReason, Receipt, SessionKey
from paceline.store import Append, SessionStore, StoreError, StoreUnavailable

log = telemetry.logger(__name__)


@dataclass(frozen=True, slots=True)
class StepOutcome:
    """What one step gave one session; `finish` is set with its last tokens."""

    token_ids: tuple[int, ...]
    accepted: int
    finish: FinishReason | None = None
    receipt: Receipt | None = None
    # Tree nodes verified.
    drafted: int = 0


@dataclass(frozen=True, slots=True)
class Tokens:
    """Tokens to stream: final, at consecutive positions from `position` on."""

    position: int
    token_ids: tuple[int, ...]
    accepted: int
    durable: bool
    drafted: int = 0


@dataclass(frozen=True, slots=True)
class Finished:
    """The session's last event."""

    reason: FinishReason
    receipt: Receipt


@dataclass(frozen=True, slots=True)
class Lost:
    """The session belongs to a later owner or is gone from the store: drop it, emit nothing more."""

    message: str


@dataclass(frozen=True, slots=True)
class Broken:
    """This verifier cannot go on, with any session."""


Event = Tokens | Finished | Lost | Broken


@dataclass(slots=True, eq=False)
class _Open:
    """One session's way from its steps to its client."""

    key: SessionKey
    emitted_length: int
    durable_length: int
    events: asyncio.Queue[Event] = field(default_factory=asyncio.Queue)
    undurable: list[int] = field(default_factory=list)
    waiting: list[StepOutcome] = field(default_factory=list)


class Committer:
    """Appends all sessions' outcomes to the store in order, and only then hands them on.

    Runs on the event loop. What a step gave goes to the store in one round trip. While that is under way
    further outcomes gather and go with the next one, so a slow store costs latency, never steps. Tokens that
    the store could not take are tried again with the session's next ones, and emitted as not durable
    meanwhile.
    """

    def __init__(self, store: SessionStore | None) -> None:
        self._store = store
        self._open: dict[SessionKey, _Open] = {}
        self._waiting: list[_Open] = []
        self._wake = asyncio.Event()
        self._failed = False

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Commit and emit until the block is left."""
        committing = asyncio.create_task(self._run())
        committing.add_done_callback(self._ended)
        try:
            yield
        finally:
            committing.cancel()

    def open(self, key: SessionKey, length: int) -> asyncio.Queue[Event]:
        """Begin to commit a session of `length` committed ids; gives the queue of its events."""
        opened = self._open[key] = _Open(key, length, length)
        if self._failed:
            opened.events.put_nowait(Broken())
        return opened.events

    def close(self, key: SessionKey) -> None:
        """Commit nothing more of a session. Idempotent."""
        self._open.pop(key, None)

    def push(self, outcomes: Iterable[tuple[SessionKey, StepOutcome]]) -> None:
        """Add what a step gave; call on the event loop."""
        for key, outcome in outcomes:
            session = self._open.get(key)
            if session is None:
                continue
            if not session.waiting:
                self._waiting.append(session)
            session.waiting.append(outcome)
        self._wake.set()

    def fail(self) -> None:
        """Tell every session that no more will come."""
        self._failed = True
        for session in self._open.values():
            session.events.put_nowait(Broken())

    def _ended(self, committing: asyncio.Task[None]) -> None:
        if not committing.cancelled():
            log.error("commits stopped", exc_info=committing.exception())
            self.fail()

    async def _run(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            batch = [(session, session.waiting) for session in self._waiting]
            self._waiting = []
            for session, outcomes in batch:
                session.waiting = []
                session.undurable += [token for outcome in outcomes for token in outcome.token_ids]
            errors = await self._append(batch)
            for (session, outcomes), error in zip(batch, errors, strict=True):
                self._emit(session, outcomes, error)

    async def _append(self, batch: list[tuple[_Open, list[StepOutcome]]]) -> list[StoreError | None]:
        """What kept each session from the store."""
        if self._store is None:
            return [StoreUnavailable("there is none")] * len(batch)
        appends = [
            Append(session.key, session.durable_length, tuple(session.undurable), outcomes[-1].finish)
            for session, outcomes in batch
        ]
        errors = await self._store.append(appends)
        for append, error in zip(appends, errors, strict=True):
            if isinstance(error, StoreUnavailable):
                telemetry.APPENDS_FAILED.inc()
                log.warning(
                    "append failed, tokens are not durable", session=append.key.session_id, error=str(error)
                )
        return errors

    def _emit(self, session: _Open, outcomes: list[StepOutcome], error: StoreError | None) -> None:
        if error is not None and not isinstance(error, StoreUnavailable):
            session.events.put_nowait(Lost(str(error)))
            self.close(session.key)
            return
        durable = error is None
        if durable:
            session.durable_length += len(session.undurable)
            session.undurable = []
        for outcome in outcomes:
            if outcome.token_ids:
                session.events.put_nowait(
                    Tokens(
                        session.emitted_length, outcome.token_ids, outcome.accepted, durable, outcome.drafted
                    )
                )
                session.emitted_length += len(outcome.token_ids)
            if outcome.finish is not None and outcome.receipt is not None:
                session.events.put_nowait(Finished(outcome.finish, outcome.receipt))
