"""Commit, then emit: nothing reaches a client before the store has answered for it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager

from paceline.service import telemetry
from paceline.session import SessionKey
from paceline.store import Append, SessionRecord, SessionStore, StoreError, StoreUnavailableError
from verifier_svc import metrics
from verifier_svc.commitments import Commitment, Commitments
from verifier_svc.events import (
    Alive,
    Aside,
    Broken,
    Event,
    Finished,
    Lost,
    StepOutcome,
    Tokens,
    Unrecorded,
)
from verifier_svc.recording import Recording
from verifier_svc.session_trace import SessionTrace

log = telemetry.logger(__name__)


class Committer:
    """Appends all sessions' outcomes to the store in order, and only then hands them on.

    Runs on the event loop. What a step gave goes to the store in one round trip. While that is under way
    further outcomes gather and go with the next one, so a slow store costs latency, never steps. A record
    that the store has lost is recorded again.

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
        self._strict = strict
        self._patience_seconds = patience_seconds
        self._commitments = Commitments()
        self._recording = (
            Recording(store, self._commitments, strict=strict, on_stop=self._stopped)
            if store is not None
            else None
        )

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Commit and emit until the block is left."""
        committing = asyncio.create_task(self._run())
        committing.add_done_callback(self._stopped)
        try:
            yield
        finally:
            committing.cancel()
            if self._recording is not None:
                self._recording.cancel()

    @property
    def busy(self) -> bool:
        """Whether a session is streamed, or has ended and is not recorded yet."""
        return self._commitments.busy

    def open(self, record: SessionRecord, trace: SessionTrace | None = None) -> asyncio.Queue[Event]:
        """Begin to commit to a session that is recorded as `record`; gives the queue of its events."""
        opened = self._commitments.open(record, trace)
        if self.failed:
            opened.events.put_nowait(Broken())
        return opened.events

    def close(self, key: SessionKey) -> None:
        """Emit nothing more of a session. Idempotent."""
        session = self._commitments.close(key)
        if session is None or self._recording is None:
            return
        if session.finish is not None and session.lacking:
            self._commitments.keep(session)

    def lose(self, key: SessionKey) -> None:
        """End a session whose later owner has come to this verifier."""
        session = self._commitments.close(key)
        if session is not None:
            session.events.put_nowait(Lost("a later owner of the session is here"))

    def push(self, outcomes: Iterable[tuple[SessionKey, StepOutcome]]) -> None:
        """Add what a step gave."""
        for key, outcome in outcomes:
            session = self._commitments.get(key)
            if session is None:
                continue
            self._commitments.queue(session)
            session.waiting.append(outcome)
            session.added += outcome.token_ids
            session.added_logprobs += outcome.logprobs
            session.finish = outcome.finish
        self._commitments.wake()

    def say_alive(self) -> None:
        """Tell every session that has nothing else to hear."""
        for session in self._commitments.streamed():
            if session.events.empty():
                session.events.put_nowait(Alive())

    def say_aside(self, key: SessionKey, seconds: float) -> None:
        """Tell a session, if it is streamed, that its drafter is put aside."""
        session = self._commitments.get(key)
        if session is not None:
            session.events.put_nowait(Aside(seconds))

    def fail(self) -> None:
        """Tell every session that no more will come."""
        self.failed = True
        for session in self._commitments.streamed():
            session.events.put_nowait(Broken())

    def _stopped(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and task.exception() is not None:
            log.error("commits stopped", exc_info=task.exception())
            self.fail()
            self._on_failure()

    async def _run(self) -> None:
        while True:
            batch = await self._commitments.next_batch()
            if not batch:
                continue
            taken = [(session, session.append(), session.waiting) for session in batch]
            for session in batch:
                session.waiting = []
            errors = await self._write([(session, append) for session, append, _ in taken])
            for (session, append, outcomes), error in zip(taken, errors, strict=True):
                if not self._commitments.settle(session, append, error):
                    continue
                if error is not None and self._strict and self._recording is not None:
                    self._hold(session, outcomes, error)
                else:
                    self._emit(session, outcomes, durable=error is None)

    async def _write(self, batch: list[tuple[Commitment, Append]]) -> list[StoreError | None]:
        if self._recording is None:
            return [StoreUnavailableError("there is none")] * len(batch)
        return await self._recording.write(batch)

    def _hold(self, session: Commitment, outcomes: list[StepOutcome], error: StoreError) -> None:
        """Keep outcomes until the store is back, or give the session up."""
        now = time.monotonic()
        session.held_since = session.held_since or now
        if now - session.held_since > self._patience_seconds:
            session.events.put_nowait(Unrecorded(str(error)))
            self._commitments.close(session.record.key)
            return
        self._commitments.queue(session)
        session.waiting = [*outcomes, *session.waiting]

    def _emit(self, session: Commitment, outcomes: list[StepOutcome], *, durable: bool) -> None:
        for outcome in outcomes:
            if outcome.token_ids:
                position = session.opened_length + session.emitted
                session.events.put_nowait(
                    Tokens(
                        position,
                        outcome.token_ids,
                        outcome.accepted,
                        durable,
                        outcome.drafted,
                        outcome.sources,
                        outcome.logprobs,
                        outcome.prompt_logprobs,
                        outcome.drafts,
                    )
                )
                session.emitted += len(outcome.token_ids)
                if not durable:
                    metrics.UNDURABLE_TOKENS.inc(len(outcome.token_ids))
            if outcome.fault is not None:
                session.events.put_nowait(outcome.fault)
            elif outcome.finish is not None and outcome.receipt is not None:
                session.events.put_nowait(Finished(outcome.finish, outcome.receipt))
        if session.trace is not None:
            session.trace.emitted(outcomes, durable=durable)
