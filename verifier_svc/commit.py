"""Commit, then emit: nothing reaches a client before the store has answered for it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from paceline import telemetry
from paceline.session import FinishReason, Receipt, SessionKey
from paceline.store import BaseMismatch, Fenced, SessionStore, StoreUnavailable, UnknownSession

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


Event = Tokens | Finished | Lost


class Committer:
    """Appends one session's outcomes to the store in order, and only then hands them on.

    Runs on the event loop. While an append is under way further outcomes gather and go with the
    next one, so a slow store costs latency, never steps. An append that the store could not take is
    tried again with the next outcome; its tokens are emitted as not durable meanwhile.
    """

    def __init__(self, key: SessionKey, length: int, store: SessionStore | None) -> None:
        self.key = key
        self.events: asyncio.Queue[Event] = asyncio.Queue()
        self._store = store
        self._emitted_length = length
        self._durable_length = length
        self._undurable: list[int] = []
        self._waiting: asyncio.Queue[StepOutcome] = asyncio.Queue()

    def push(self, outcome: StepOutcome) -> None:
        """Add a step's outcome; call on the event loop."""
        self._waiting.put_nowait(outcome)

    async def run(self) -> None:
        """Commit and emit until the session's last outcome or until it is lost."""
        while True:
            outcomes = [await self._waiting.get()]
            while not self._waiting.empty():
                outcomes.append(self._waiting.get_nowait())
            try:
                durable = await self._append([token for outcome in outcomes for token in outcome.token_ids])
            except (Fenced, BaseMismatch, UnknownSession) as error:
                self.events.put_nowait(Lost(str(error)))
                return
            for outcome in outcomes:
                self._emit(outcome, durable)
            last = outcomes[-1]
            if last.finish is not None and last.receipt is not None:
                await self._finish(last.finish)
                self.events.put_nowait(Finished(last.finish, last.receipt))
                return

    async def _append(self, token_ids: list[int]) -> bool:
        if self._store is None:
            return False
        self._undurable += token_ids
        if not self._undurable:
            return True
        try:
            await self._store.append(self.key, self._durable_length, self._undurable)
        except StoreUnavailable as error:
            telemetry.APPENDS_FAILED.inc()
            log.warning(
                "append failed, tokens are not durable", session=self.key.session_id, error=str(error)
            )
            return False
        self._durable_length += len(self._undurable)
        self._undurable = []
        return True

    def _emit(self, outcome: StepOutcome, durable: bool) -> None:
        if outcome.token_ids:
            self.events.put_nowait(
                Tokens(self._emitted_length, outcome.token_ids, outcome.accepted, durable, outcome.drafted)
            )
            self._emitted_length += len(outcome.token_ids)

    async def _finish(self, reason: FinishReason) -> None:
        if self._store is None:
            return
        try:
            await self._store.finish(self.key, reason)
        except (StoreUnavailable, Fenced, UnknownSession) as error:
            log.warning("finish not recorded", session=self.key.session_id, error=str(error))
