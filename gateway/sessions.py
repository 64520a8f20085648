"""All sessions of a gateway: it begins, resumes, cancels and counts them."""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, replace

from opentelemetry.trace import Span

from gateway import metrics
from gateway.admission import AdmissionControl
from gateway.caller import Caller
from gateway.detokenize import Detokenizer
from gateway.errors import UNAVAILABLE, UNKNOWN_SESSION, RequestError
from gateway.events import Chunk, Event, Finished, Started
from gateway.fleet import Fleet
from gateway.generation import Asked, Generation
from gateway.places import Places
from gateway.session import Following, Policy
from gateway.stopwatch import Stopwatch
from paceline.net.wire import SESSION_ID
from paceline.service import spans
from paceline.session import FinishReason, SessionKey
from paceline.store import (
    FencedError,
    SessionRecord,
    SessionStore,
    StoreUnavailableError,
    UnknownSessionError,
)

# How often a claim is tried. Of concurrent claims of one session one wins each time.
_CLAIMS = 8


@dataclass(frozen=True, slots=True)
class Claimed:
    """A recorded session that this gateway owns from now on, or that has ended."""

    record: SessionRecord
    # What its client asked for, from the record.
    wanted: Generation


class Sessions:
    """Runs sessions for both faces of the gateway."""

    def __init__(
        self,
        fleet: Fleet,
        store: SessionStore,
        policy: Policy,
        admission: AdmissionControl,
        *,
        model_id: str,
        max_sessions: int,
        max_waiting: int = 2048,
    ) -> None:
        """`max_waiting`: most requests without a place."""
        self._model_id = model_id
        self.fleet = fleet
        self.store = store
        self.policy = policy
        self.admission = admission
        self._places = Places(
            fleet,
            model_id=model_id,
            max_sessions=max_sessions,
            max_waiting=max_waiting,
            queue_seconds=admission.queue_seconds,
            retry_seconds=admission.retry_seconds,
        )

    @property
    def running(self) -> int:
        """Number of sessions that this gateway follows."""
        return self._places.running

    @staticmethod
    def new_id() -> str:
        """An id for a session that is yet to begin."""
        return secrets.token_urlsafe(24)

    def generate(
        self,
        wanted: Generation | Asked,
        caller: Caller,
        detokenizer: Detokenizer,
        parent: Span,
        deadline: float | None = None,
        *,
        session_id: str = "",
    ) -> AsyncGenerator[Event, None]:
        """A new session's events, until `deadline` (on the monotonic clock). Raises `RequestError`.

        Closing the iterator early stops the session everywhere. Its record stays, so it can be resumed.
        `session_id`: from `new_id`, where it must be known before.
        """
        key = SessionKey(session_id or self.new_id(), 1)
        return self._followed(key, wanted, caller, detokenizer, parent, deadline)

    async def claim(self, session_id: str, caller: Caller, finish: FinishReason | None = None) -> Claimed:
        """Take over a session of the caller's, to resume it here; with `finish`, end it.

        Unless it has ended already, its last owner is fenced out. Raises `RequestError`.
        """
        unknown = RequestError(UNKNOWN_SESSION, f"no session {session_id[:64]!r} of yours is recorded")
        if not SESSION_ID.fullmatch(session_id):
            raise unknown
        try:
            record = await self.store.get(session_id)
            if record is None or record.model_id != self._model_id:
                raise unknown
            wanted, owner = Generation.recorded(record)
            if owner.id != caller.id:
                raise unknown
            for _ in range(_CLAIMS):
                if record is None:
                    raise unknown
                if record.finish_reason is not None:
                    return Claimed(record, wanted)
                try:
                    key = SessionKey(session_id, record.key.epoch + 1)
                    return Claimed(await self.store.claim(key, finish), wanted)
                except FencedError:
                    record = await self.store.get(session_id)
        except StoreUnavailableError as error:
            raise RequestError(UNAVAILABLE, "the session store does not answer; try again later") from error
        except UnknownSessionError:
            raise unknown from None
        raise RequestError(UNAVAILABLE, "the session is being moved; try again later")

    def resume(
        self,
        claimed: Claimed,
        caller: Caller,
        detokenizer: Detokenizer,
        parent: Span,
        deadline: float | None = None,
    ) -> AsyncGenerator[Event, None]:
        """All events of a claimed session, from its beginning. Raises `RequestError`."""
        record = claimed.record
        return self._followed(record.key, claimed.wanted, caller, detokenizer, parent, deadline, record)

    async def cancel(self, session_id: str, caller: Caller) -> FinishReason:
        """End a session wherever it runs; returns why it ended, maybe earlier. Raises `RequestError`."""
        claimed = await self.claim(session_id, caller, FinishReason.CANCELLED)
        assert claimed.record.finish_reason is not None
        return claimed.record.finish_reason

    async def _followed(
        self,
        key: SessionKey,
        wanted: Generation | Asked,
        caller: Caller,
        detokenizer: Detokenizer,
        parent: Span,
        deadline: float | None,
        resumed: SessionRecord | None = None,
    ) -> AsyncGenerator[Event, None]:
        watch = Stopwatch()
        seated = self._places.seat(caller.id, begun=resumed is not None, priority=wanted.priority)
        with (
            seated as seat,
            spans.span("gateway.session", parent) as span,
            spans.Stages(span) as stages,
        ):
            span.set_attribute(spans.SESSION_ID, key.session_id)
            stages.enter("gateway.admission")
            # The tokens that a resumed session has already were charged before.
            known = len(resumed.committed_ids) if resumed else 0
            admitted = self.admission.admitted(
                caller,
                key.session_id,
                prompt_tokens=0 if resumed else wanted.prompt_tokens,
                max_tokens=0 if resumed else wanted.max_tokens,
                priority=wanted.priority,
            )
            async with admitted as place:
                if isinstance(wanted, Asked):
                    stages.enter("gateway.tokenise")
                    wanted = await wanted.generation(caller.id, seat.until)
                    await self.admission.tokenised(place, wanted.prompt_tokens, wanted.max_tokens)
                span.set_attribute(spans.PROMPT_TOKENS, wanted.prompt_tokens)
                following = Following(
                    self.fleet,
                    self.store,
                    self.policy,
                    key,
                    wanted,
                    caller,
                    detokenizer,
                    seat,
                    stages,
                    deadline,
                )
                async with aclosing(following.events(resumed)) as events:
                    told = 0
                    async for event in events:
                        if isinstance(event, Started):
                            place.began = time.monotonic()
                            if resumed is None:
                                metrics.PROMPT_TOKENS.inc(event.prompt_tokens)
                            event = replace(event, allowance=place.allowance)
                        elif isinstance(event, Chunk):
                            told += len(event.token_ids)
                            metrics.GENERATION_TOKENS.inc(max(0, told - known) - place.generated)
                            place.generated = max(0, told - known)
                        else:
                            stages.enter("gateway.finish")
                            _say_end(span, event)
                        yield watch.timed(event)


def _say_end(span: Span, end: Finished) -> None:
    span.set_attribute(spans.FINISH_REASON, str(end.reason))
    span.set_attribute(spans.COMMITTED_TOKENS, end.receipt.committed_tokens)
    span.set_attribute(spans.ACCEPTANCE_LENGTH, end.receipt.acceptance_length)
