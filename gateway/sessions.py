"""All sessions of a gateway: begun, resumed, cancelled, counted."""

from __future__ import annotations

import secrets
from collections.abc import AsyncGenerator
from contextlib import aclosing

from opentelemetry.trace import Span

from gateway.caller import Caller
from gateway.detokenize import Detokenizer
from gateway.errors import OVERLOADED, UNAVAILABLE, UNKNOWN_SESSION, RequestError
from gateway.events import Done, Event
from gateway.fleet import Fleet
from gateway.generation import Generation
from gateway.session import Following, Policy
from paceline import telemetry
from paceline.session import FinishReason, SessionKey
from paceline.store import Append, Fenced, SessionRecord, SessionStore, StoreUnavailable, UnknownSession
from paceline.wire import SESSION_ID

# Claims of one session that meet: each time one of them wins.
_CLAIMS = 8


class Sessions:
    """Runs sessions for both faces of the gateway."""

    def __init__(
        self,
        fleet: Fleet,
        store: SessionStore | None,
        policy: Policy,
        *,
        model_id: str,
        max_sessions: int,
    ) -> None:
        """Without a store sessions are neither resumed nor cancelled by id."""
        self._model_id = model_id
        self.fleet = fleet
        self.store = store
        self.policy = policy
        self.running = 0
        self._max_sessions = max_sessions

    def generate(
        self, wanted: Generation, caller: Caller, detokenizer: Detokenizer, parent: Span
    ) -> AsyncGenerator[Event, None]:
        """A new session's events. Raises `RequestError`.

        Closing the iterator early stops it everywhere; its record stays, to be resumed.
        """
        key = SessionKey(secrets.token_urlsafe(24), 1)
        return self._followed(key, wanted, caller, detokenizer, parent)

    async def claim(self, session_id: str, caller: Caller) -> SessionRecord:
        """The record of a session of the caller's, to be resumed here. Raises `RequestError`.

        Unless it has ended, whoever followed it before is fenced out.
        """
        store = self._known_store()
        unknown = RequestError(UNKNOWN_SESSION, f"no session {session_id[:64]!r} of yours is recorded")
        if not SESSION_ID.fullmatch(session_id):
            raise unknown
        try:
            for _ in range(_CLAIMS):
                record = await store.get(session_id)
                if record is None or not self._is_of(record, caller):
                    raise unknown
                if record.finish_reason is not None:
                    return record
                try:
                    return await store.claim(SessionKey(session_id, record.key.epoch + 1))
                except Fenced:
                    continue
        except StoreUnavailable as error:
            raise _unavailable() from error
        except UnknownSession:
            raise unknown from None
        raise _contended()

    def resume(
        self, record: SessionRecord, detokenizer: Detokenizer, parent: Span
    ) -> AsyncGenerator[Event, None]:
        """All events of a claimed session, from its beginning on. Raises `RequestError`."""
        wanted, caller = Generation.recorded(record)
        return self._followed(record.key, wanted, caller, detokenizer, parent, record)

    async def cancel(self, session_id: str, caller: Caller) -> FinishReason:
        """End a session wherever it runs; what it ended with, if it had. Raises `RequestError`."""
        for _ in range(_CLAIMS):
            record = await self.claim(session_id, caller)
            if record.finish_reason is not None:
                return record.finish_reason
            length = len(record.prompt_ids) + len(record.committed_ids)
            (error,) = await self._known_store().append(
                [Append(record.key, length, finish=FinishReason.CANCELLED)]
            )
            if error is None:
                return FinishReason.CANCELLED
            if isinstance(error, StoreUnavailable):
                raise _unavailable() from error
        raise _contended()

    async def _followed(
        self,
        key: SessionKey,
        wanted: Generation,
        caller: Caller,
        detokenizer: Detokenizer,
        parent: Span,
        resumed: SessionRecord | None = None,
    ) -> AsyncGenerator[Event, None]:
        if self.running >= self._max_sessions:
            raise RequestError(OVERLOADED, f"{self._max_sessions} sessions are running here; try again later")
        self.running += 1
        telemetry.GATEWAY_SESSIONS.set(self.running)
        try:
            with telemetry.span("gateway.session", parent) as span:
                span.set_attribute(telemetry.SESSION_ID, key.session_id)
                span.set_attribute(telemetry.PROMPT_TOKENS, len(wanted.prompt_ids))
                trace = telemetry.inject(span)
                following = Following(
                    self.fleet, self.store, self.policy, key, wanted, caller, detokenizer, trace
                )
                async with aclosing(following.events(resumed)) as events:
                    async for event in events:
                        if isinstance(event, Done):
                            span.set_attribute(telemetry.FINISH_REASON, str(event.reason))
                            span.set_attribute(telemetry.COMMITTED_TOKENS, event.receipt.committed_tokens)
                            span.set_attribute(telemetry.ACCEPTANCE_LENGTH, event.receipt.acceptance_length)
                        yield event
        finally:
            self.running -= 1
            telemetry.GATEWAY_SESSIONS.set(self.running)

    def _is_of(self, record: SessionRecord, caller: Caller) -> bool:
        owner = Generation.recorded(record)[1]
        return record.model_id == self._model_id and owner.id == caller.id

    def _known_store(self) -> SessionStore:
        if self.store is None:
            raise RequestError(UNKNOWN_SESSION, "this gateway records no sessions: it runs without redis_url")
        return self.store


def _unavailable() -> RequestError:
    return RequestError(UNAVAILABLE, "the session store does not answer; try again later")


def _contended() -> RequestError:
    return RequestError(UNAVAILABLE, "the session is being moved; try again later")
