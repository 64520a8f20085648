"""Commit, then emit: nothing reaches a client before the store has answered for it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace

from paceline.service import telemetry
from paceline.session import FinishReason, Receipt, SessionKey
from paceline.store import (
    Append,
    BaseMismatchError,
    SessionRecord,
    SessionStore,
    StoreError,
    StoreUnavailableError,
    UnknownSessionError,
)
from verifier_svc import metrics

log = telemetry.logger(__name__)

# How often a store that is away is asked for.
_RETRY_SECONDS = 0.2
# Sessions that ended while the store was away and are kept until it is back.
_MAX_ENDED = 4096


@dataclass(frozen=True, slots=True)
class StepOutcome:
    """What one step gave one session; `finish` is set with its last tokens.

    `fault` says why a session is ended that cannot be computed, here or elsewhere.
    """

    token_ids: tuple[int, ...]
    accepted: int
    finish: FinishReason | None = None
    receipt: Receipt | None = None
    # Tree nodes verified.
    drafted: int = 0
    fault: str | None = None


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
class Unrecorded:
    """The store did not answer for so long that strict durability gives the session up."""

    message: str


@dataclass(frozen=True, slots=True)
class Faulty:
    """The session cannot be computed, here or elsewhere."""

    message: str


@dataclass(frozen=True, slots=True)
class Alive:
    """Nothing new, but the engine is getting on."""


@dataclass(frozen=True, slots=True)
class Aside:
    """The session's drafter is not listened to for so many seconds: it needs another one."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Broken:
    """This verifier cannot go on, with any session."""


Event = Tokens | Finished | Lost | Unrecorded | Faulty | Alive | Aside | Broken


@dataclass(slots=True, eq=False)
class _Open:
    """One session's way from its steps to its client."""

    # As it was opened.
    record: SessionRecord
    events: asyncio.Queue[Event] = field(default_factory=asyncio.Queue)
    # Ids since then: of these so many are in the store, and so many are emitted.
    added: list[int] = field(default_factory=list)
    durable: int = 0
    emitted: int = 0
    waiting: list[StepOutcome] = field(default_factory=list)
    finish: FinishReason | None = None
    finish_durable: bool = False
    # Since when its tokens wait for the store, with strict durability.
    held_since: float | None = None

    @property
    def lacking(self) -> bool:
        """Whether the store has not got all of it."""
        return self.durable < len(self.added) or (self.finish is not None and not self.finish_durable)

    @property
    def opened_length(self) -> int:
        """Absolute length when it was opened."""
        return len(self.record.prompt_ids) + len(self.record.committed_ids)

    def append(self) -> Append:
        """What the store lacks."""
        lacking = tuple(self.added[self.durable :])
        return Append(self.record.key, self.opened_length + self.durable, lacking, self.finish)

    def whole(self) -> SessionRecord:
        """The record as it should be."""
        committed = (*self.record.committed_ids, *self.added)
        return replace(self.record, committed_ids=committed, finish_reason=self.finish)


class Committer:
    """Appends all sessions' outcomes to the store in order, and only then hands them on.

    Runs on the event loop. What a step gave goes to the store in one round trip. While that is under way
    further outcomes gather and go with the next one, so a slow store costs latency, never steps. A record
    that the store has lost is written anew.

    While the store does not answer, with strict durability tokens wait for it, and their sessions are given
    up after `patience_seconds`; else they are emitted as not durable, without waiting, and recorded once it
    is back, also of sessions that have ended meanwhile.
    """

    def __init__(
        self,
        store: SessionStore | None,
        *,
        strict: bool,
        patience_seconds: float,
        on_failure: Callable[[], None] = lambda: None,
    ) -> None:
        """`on_failure` is called when it cannot commit any more, by a fault of its own."""
        self.failed = False
        self._on_failure = on_failure
        self._store = store
        self._strict = strict
        self._patience_seconds = patience_seconds
        self._open: dict[SessionKey, _Open] = {}
        self._ended: dict[_Open, None] = {}
        # In order.
        self._waiting: dict[_Open, None] = {}
        self._wake = asyncio.Event()
        self._away_since: float | None = None
        self._looking: asyncio.Task[None] | None = None

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Commit and emit until the block is left."""
        committing = asyncio.create_task(self._run())
        committing.add_done_callback(self._stopped)
        try:
            yield
        finally:
            committing.cancel()
            if self._looking is not None:
                self._looking.cancel()

    @property
    def busy(self) -> bool:
        """Whether a session is streamed, or has ended and is not recorded yet."""
        return bool(self._open or self._ended)

    def open(self, record: SessionRecord) -> asyncio.Queue[Event]:
        """Begin to commit to a session that is recorded as `record`; gives the queue of its events."""
        opened = self._open[record.key] = _Open(record)
        if self.failed:
            opened.events.put_nowait(Broken())
        return opened.events

    def close(self, key: SessionKey) -> None:
        """Emit nothing more of a session. Idempotent."""
        session = self._open.pop(key, None)
        if self._store is None:
            return
        if session is not None and session.finish is not None and session.lacking:
            while len(self._ended) >= _MAX_ENDED:
                del self._ended[next(iter(self._ended))]
            self._ended[session] = None

    def lose(self, key: SessionKey) -> None:
        """End a session whose later owner has come to this verifier."""
        session = self._open.pop(key, None)
        if session is not None:
            session.events.put_nowait(Lost("a later owner of the session is here"))

    def push(self, outcomes: Iterable[tuple[SessionKey, StepOutcome]]) -> None:
        """Add what a step gave; call on the event loop."""
        for key, outcome in outcomes:
            session = self._open.get(key)
            if session is None:
                continue
            self._waiting[session] = None
            session.waiting.append(outcome)
            session.added += outcome.token_ids
            session.finish = outcome.finish
        self._wake.set()

    def say_alive(self) -> None:
        """Tell every session that has nothing else to hear."""
        for session in self._open.values():
            if session.events.empty():
                session.events.put_nowait(Alive())

    def say_aside(self, key: SessionKey, seconds: float) -> None:
        """Tell a session, if it is open, that its drafter is put aside."""
        session = self._open.get(key)
        if session is not None:
            session.events.put_nowait(Aside(seconds))

    def fail(self) -> None:
        """Tell every session that no more will come."""
        self.failed = True
        for session in self._open.values():
            session.events.put_nowait(Broken())

    def _stopped(self, committing: asyncio.Task[None]) -> None:
        if not committing.cancelled() and committing.exception() is not None:
            log.error("commits stopped", exc_info=committing.exception())
            self.fail()
            self._on_failure()

    async def _run(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            batch, self._waiting = self._waiting, {}
            if not batch:
                continue
            taken = [(session, session.append(), session.waiting) for session in batch]
            for session in batch:
                session.waiting = []
            errors = await self._commit([(session, append) for session, append, _ in taken])
            for (session, append, outcomes), error in zip(taken, errors, strict=True):
                if not self._settled(session, append, error):
                    continue
                if error is not None and self._strict and self._store is not None:
                    self._hold(session, outcomes, error)
                else:
                    self._emit(session, outcomes, durable=error is None)

    def _settled(self, session: _Open, append: Append, error: StoreError | None) -> bool:
        """Note what the store said to an append; whether the session goes on."""
        if error is None:
            session.durable += len(append.token_ids)
            session.finish_durable = append.finish is not None
            session.held_since = None
            if not session.lacking:
                self._ended.pop(session, None)
        elif not isinstance(error, StoreUnavailableError):
            session.events.put_nowait(Lost(str(error)))
            self._open.pop(session.record.key, None)
            self._ended.pop(session, None)
            return False
        return True

    async def _commit(self, batch: list[tuple[_Open, Append]]) -> list[StoreError | None]:
        """What kept each session's ids from the store; what is left to `_look` does not wait for it."""
        if self._store is None:
            return [StoreUnavailableError("there is none")] * len(batch)
        errors: list[StoreError | None] = [StoreUnavailableError("it has not come back")] * len(batch)
        asked = [place for place, (session, _) in enumerate(batch) if not self._looked_after(session)]
        if asked:
            told = await self._append([batch[place] for place in asked])
            for place, error in zip(asked, told, strict=True):
                errors[place] = error
        return errors

    def _looked_after(self, session: _Open) -> bool:
        """Whether the store is away for the session."""
        return self._away_since is not None and (not self._strict or session.held_since is not None)

    async def _append(self, batch: list[tuple[_Open, Append]]) -> list[StoreError | None]:
        assert self._store is not None
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

    async def _restore(self, session: _Open) -> StoreError | None:
        assert self._store is not None
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
        self._looking.add_done_callback(self._stopped)

    async def _look(self) -> None:
        """Offer the store what it lacks until it takes all of that: one that answers may still not write."""
        assert self._store is not None
        while True:
            await asyncio.sleep(_RETRY_SECONDS)
            sessions = (*self._open.values(), *self._ended)
            lacking = [(session, session.append()) for session in sessions if session.lacking]
            lacking = [each for each in lacking if self._looked_after(each[0])]
            errors: list[StoreError | None] = []
            if lacking:
                errors = await self._append(lacking)
                for (session, append), error in zip(lacking, errors, strict=True):
                    self._settled(session, append, error)
            else:
                try:
                    await self._store.ping()
                except StoreUnavailableError as error:
                    errors = [error]
            if not any(isinstance(error, StoreUnavailableError) for error in errors):
                self._find()
                return
            # Those that are held may have waited long enough.
            self._wake.set()

    def _find(self) -> None:
        assert self._away_since is not None
        log.info("the session store is back", seconds=round(time.monotonic() - self._away_since, 1))
        self._away_since = None
        metrics.STORE_AWAY.set(0)
        for session in (*self._open.values(), *self._ended):
            if session.lacking:
                self._waiting[session] = None
        self._wake.set()

    def _hold(self, session: _Open, outcomes: list[StepOutcome], error: StoreError) -> None:
        """Keep outcomes until the store is back, or give the session up."""
        now = time.monotonic()
        session.held_since = session.held_since or now
        if now - session.held_since > self._patience_seconds:
            session.events.put_nowait(Unrecorded(str(error)))
            self._open.pop(session.record.key, None)
            return
        self._waiting[session] = None
        session.waiting = [*outcomes, *session.waiting]

    def _emit(self, session: _Open, outcomes: list[StepOutcome], *, durable: bool) -> None:
        for outcome in outcomes:
            if outcome.token_ids:
                position = session.opened_length + session.emitted
                session.events.put_nowait(
                    Tokens(position, outcome.token_ids, outcome.accepted, durable, outcome.drafted)
                )
                session.emitted += len(outcome.token_ids)
                if not durable:
                    metrics.UNDURABLE_TOKENS.inc(len(outcome.token_ids))
            if outcome.fault is not None:
                session.events.put_nowait(Faulty(outcome.fault))
            elif outcome.finish is not None and outcome.receipt is not None:
                session.events.put_nowait(Finished(outcome.finish, outcome.receipt))
