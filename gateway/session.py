"""Follows one session: finds it a verifier, reads its tokens there, moves it when the verifier fails."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass

import grpc

from gateway import metrics, verifier_call
from gateway.caller import Caller
from gateway.detokenize import Detokenizer
from gateway.errors import INTERNAL, TIMEOUT, UNAVAILABLE, RequestError
from gateway.events import Event, Started
from gateway.fleet import Fleet
from gateway.followed import Followed
from gateway.generation import Generation
from gateway.ownership import Ownership
from gateway.places import Seat
from gateway.pod import Pod
from gateway.routing.texts import RoutedText
from gateway.stay import Heard, StoppingError, stay
from gateway.suspicion import Suspicion
from gateway.transcript import Transcript
from paceline.service import spans, telemetry
from paceline.session import SessionKey
from paceline.store import FencedError, SessionRecord, SessionStore
from paceline.v1 import verifier_pb2

log = telemetry.logger(__name__)

# How long a session may be without progress before its client gets an error.
_PATIENCE_SECONDS = 20.0
# Pause before a move, per move since the last token: the first one is immediate.
_MOVE_SECONDS = 0.1
_LONGEST_MOVE_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Policy:
    """How sessions are followed."""

    # No session begins or moves while the store does not answer.
    strict: bool
    # A verifier that is silent for this long is taken for hung.
    silence_seconds: float
    # How often a session's drafter is checked.
    check_seconds: float


class Following:
    """Follows one session to its last event, from verifier to verifier."""

    def __init__(
        self,
        fleet: Fleet,
        store: SessionStore,
        policy: Policy,
        key: SessionKey,
        wanted: Generation,
        caller: Caller,
        detokenizer: Detokenizer,
        seat: Seat,
        stages: spans.Stages,
        deadline: float | None = None,
    ) -> None:
        """`seat`: the session's seat in the line for a place at a verifier. `stages`: those of its span.

        `deadline`: on the monotonic clock; passed on with each call, so that verifiers stop at it.
        """
        transcript = Transcript(wanted, detokenizer)
        self._session = Followed(
            wanted,
            caller,
            transcript,
            RoutedText(wanted.prompt_ids, wanted.cache_salt),
            Ownership(
                store,
                key,
                lambda key: wanted.record(
                    key, caller, transcript.committed_ids, transcript.committed_logprobs
                ),
                strict=policy.strict,
            ),
            Suspicion(fleet.turns),
            stages,
            deadline,
        )
        self._fleet = fleet
        self._seat = seat
        self._silence_seconds = policy.silence_seconds
        self._check_seconds = policy.check_seconds
        # Verifiers that have failed the session.
        self._failed: set[str] = set()

    async def events(self, resumed: SessionRecord | None = None) -> AsyncGenerator[Event, None]:
        """All events of a new session, or of the claimed session whose record is `resumed`.

        `Started` is always first, whatever fails. Text can be known before a verifier has said that it opened
        the session: from the record, if the verifier was lost before that. Raises `RequestError`.
        """
        started = False
        try:
            async with aclosing(self._told(resumed)) as told:
                async for event in told:
                    if not started:
                        wanted = self._session.wanted
                        yield Started(
                            self._session.owned.key.session_id,
                            wanted.sampling.seed,
                            len(wanted.prompt_ids),
                            wanted.prompt_ids,
                        )
                    started = True
                    if not isinstance(event, verifier_pb2.Opened):
                        yield event
        finally:
            self._session.suspicion.end()

    async def _told(self, resumed: SessionRecord | None) -> AsyncGenerator[Heard, None]:
        """The session's events. `Opened` comes each time a verifier, or the record, has the session."""
        session, recorded = self._session, resumed is not None
        if resumed is not None:
            yield verifier_pb2.Opened()
            for event in session.transcript.catch_up(resumed, durable=session.owned.durable):
                yield event
        deadline, moves = time.monotonic() + _PATIENCE_SECONDS, 0
        while not session.transcript.ended:
            if session.suspicion.suspect:
                await session.suspicion.turn()
                deadline = time.monotonic() + _PATIENCE_SECONDS
            if time.monotonic() > deadline:
                raise RequestError(UNAVAILABLE, "no verifier gets on with this session; try again later")
            session.stages.enter("gateway.queue")
            session.text.grown(session.transcript.ids())
            verifier = await self._seat.verifier(session.text, self._failed, deadline)
            session.stages.enter("gateway.route")
            self._say_route()
            if not recorded:
                await session.owned.create()
            recorded, opened = True, False
            try:
                async with aclosing(self._stay(verifier)) as events:
                    async for event in events:
                        if isinstance(event, verifier_pb2.Opened):
                            self._seat.begun = opened = True
                            session.stages.enter("gateway.first_token")
                        else:
                            deadline, moves = time.monotonic() + _PATIENCE_SECONDS, 0
                            session.stages.enter("gateway.stream")
                        yield event
            except StoppingError:
                log.info("verifier is being stopped, moving the session", **self._at(verifier))
                deadline = time.monotonic() + _PATIENCE_SECONDS
                for event in session.transcript.catch_up(
                    await session.owned.claim(deadline), durable=session.owned.durable
                ):
                    yield event
            except (grpc.aio.AioRpcError, verifier_call.SilentError, FencedError) as error:
                if not opened and verifier_call.is_full(error):
                    self._seat.turned_away(verifier)
                    if not self._seat.begun:
                        # Waiting in line does not count; the line has its own limit.
                        deadline = time.monotonic() + _PATIENCE_SECONDS
                    continue
                moves += 1
                record = await self._taken_from(verifier, error, deadline, opened=opened)
                for event in session.transcript.catch_up(record, durable=session.owned.durable):
                    self._seat.begun = True
                    yield event
                if not session.transcript.ended:
                    await asyncio.sleep(min(_MOVE_SECONDS * (moves - 1), _LONGEST_MOVE_SECONDS))

    def _stay(self, verifier: Pod) -> AsyncGenerator[Heard, None]:
        return stay(
            self._session,
            verifier,
            self._fleet,
            self._seat,
            self._failed,
            silence_seconds=self._silence_seconds,
            check_seconds=self._check_seconds,
        )

    def _say_route(self) -> None:
        choice = self._seat.choice
        if choice is not None:
            self._session.stages.current.set_attributes(
                {
                    spans.VERIFIER: choice.verifier.address,
                    spans.REASON: str(choice.reason),
                    spans.HELD_TOKENS: choice.held_tokens,
                    spans.PREDICTED_SECONDS: choice.seconds,
                }
            )
            log.debug(
                "verifier chosen",
                session=self._session.owned.key.session_id,
                verifier=choice.verifier.address,
                why=choice.reason,
                held_tokens=choice.held_tokens,
                seconds=round(choice.seconds, 4),
            )

    async def _taken_from(
        self, verifier: Pod, error: verifier_call.CallError, deadline: float, *, opened: bool
    ) -> SessionRecord:
        """Take the session from a verifier that has failed it; returns its record.

        Raises `RequestError` if the session cannot go on.
        """
        if self._session.deadline is not None and time.monotonic() >= self._session.deadline:
            raise RequestError(TIMEOUT, "the request's time is over") from error
        if verifier_call.is_fenced(error):
            return await self._session.owned.ended_elsewhere(error)
        if (refusal := verifier_call.refusal(error)) is not None:
            raise refusal from error
        log.warning("verifier lost, moving the session", **self._at(verifier), why=verifier_call.why(error))
        metrics.MOVES.inc()
        self._session.stages.enter("gateway.move")
        moved = {spans.VERIFIER: verifier.address, spans.REASON: verifier_call.why(error)}
        self._session.stages.parent.add_event("moved", moved)
        self._failed.add(verifier.address)
        if isinstance(error, verifier_call.SilentError):
            # The verifier may only be slow: be more patient from now on.
            self._silence_seconds *= 2
        if verifier_call.is_gone(error):
            verifier.lost("call failed")
        died = opened and not verifier.draining and verifier_call.is_death(error)
        if died and self._session.suspicion.died():
            log.error("verifiers die of a session, it is ended", session=self._session.owned.key.session_id)
            await self._session.owned.abandon()
            raise RequestError(INTERNAL, "verifiers die of this session; it goes no further") from error
        return await self._session.owned.claim(deadline)

    def _at(self, verifier: Pod) -> dict[str, str]:
        """What a line of the log says of where the session is."""
        return {"session": self._session.owned.key.session_id, "verifier": verifier.address}
