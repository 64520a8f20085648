"""Follow one session: record it, open it, read its tokens, move it when its verifier dies."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterable, AsyncIterator, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

import grpc
from opentelemetry.trace import Span

from gateway.detokenize import Detokenizer, StopStrings
from gateway.errors import INTERNAL, OVERLOADED, UNAVAILABLE, RequestError
from gateway.fleet import Fleet
from gateway.router import VerifierView, choose_verifier
from gateway.speculation import Speculation
from paceline import telemetry, wire
from paceline.session import FinishReason, Receipt, SamplingParams, SessionKey
from paceline.store import Fenced, SessionRecord, SessionStore, StoreUnavailable, UnknownSession
from paceline.v1 import verifier_pb2, verifier_pb2_grpc

log = telemetry.logger(__name__)

# How long a session looks for a verifier before its client is told.
_PATIENCE_SECONDS = 20.0
# Between two moves, for each verifier that has failed before.
_MOVE_SECONDS = 0.1
# A verifier that ends a call so may serve the session elsewhere or later.
_MOVABLE = {
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.INTERNAL,
    grpc.StatusCode.UNKNOWN,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.CANCELLED,
}


@dataclass(frozen=True, slots=True)
class Generation:
    """What a client asked for, whichever face it came through."""

    model_id: str
    prompt_ids: tuple[int, ...]
    sampling: SamplingParams
    stops: tuple[str, ...] = ()
    speculation: bool = True


@dataclass(frozen=True, slots=True)
class Started:
    """The session is recorded and its verifier has taken it."""

    session_id: str
    seed: int
    prompt_tokens: int


@dataclass(frozen=True, slots=True)
class Chunk:
    """New tokens and the text that they make sure of."""

    text: str
    position: int
    token_ids: tuple[int, ...]
    accepted: int
    # Whether the store has them.
    durable: bool


@dataclass(frozen=True, slots=True)
class Done:
    """The last event."""

    reason: FinishReason
    receipt: Receipt


Event = Started | Chunk | Done
_Response = verifier_pb2.OpenResponse


class Sessions:
    """Runs sessions for both faces of the gateway."""

    def __init__(
        self,
        fleet: Fleet,
        store: SessionStore | None,
        *,
        strict: bool,
        silence_seconds: float,
        max_sessions: int,
        check_seconds: float,
    ) -> None:
        """`strict`: nothing begins or moves while the store does not answer.

        A verifier that is silent for `silence_seconds` is taken for hung.
        """
        self.fleet = fleet
        self.store = store
        self.strict = strict
        self.silence_seconds = silence_seconds
        self.running = 0
        self._max_sessions = max_sessions
        self._check_seconds = check_seconds

    async def generate(
        self, wanted: Generation, detokenizer: Detokenizer, parent: Span
    ) -> AsyncIterator[Event]:
        """The session's events; leaving the iterator early cancels it everywhere. Raises `RequestError`."""
        if self.running >= self._max_sessions:
            raise RequestError(OVERLOADED, f"{self._max_sessions} sessions are running here; try again later")
        self.running += 1
        telemetry.GATEWAY_SESSIONS.set(self.running)
        try:
            with telemetry.span("gateway.session", parent) as span:
                following = _Following(self, wanted, detokenizer, telemetry.inject(span))
                span.set_attribute(telemetry.SESSION_ID, following.key.session_id)
                span.set_attribute(telemetry.PROMPT_TOKENS, len(wanted.prompt_ids))
                async for event in following.events():
                    if isinstance(event, Done):
                        span.set_attribute(telemetry.FINISH_REASON, str(event.reason))
                        span.set_attribute(telemetry.COMMITTED_TOKENS, event.receipt.committed_tokens)
                        span.set_attribute(telemetry.ACCEPTANCE_LENGTH, event.receipt.acceptance_length)
                    yield event
        finally:
            self.running -= 1
            telemetry.GATEWAY_SESSIONS.set(self.running)


class _Silent(Exception):
    """A verifier neither serves its session nor says why."""


class _Following:
    """One session from its record to its last event."""

    def __init__(
        self,
        sessions: Sessions,
        wanted: Generation,
        detokenizer: Detokenizer,
        trace: Sequence[tuple[str, str]],
    ) -> None:
        self.key = SessionKey(secrets.token_urlsafe(24), 1)
        self._trace = tuple(trace)
        self._fleet = sessions.fleet
        self._store = sessions.store
        self._strict = sessions.strict
        self._silence_seconds = sessions.silence_seconds
        self._check_seconds = sessions._check_seconds
        self._wanted = wanted
        self._detokenizer = detokenizer
        self._stops = StopStrings(wanted.stops)
        self._committed: list[int] = []
        self._durable = True
        self._receipt = Receipt()
        self._failed: set[str] = set()

    async def events(self) -> AsyncIterator[Event]:
        await self._record()
        wanted = self._wanted
        started = False
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while True:
            if time.monotonic() > deadline:
                raise RequestError(UNAVAILABLE, "no verifier gets on with this session; try again later")
            verifier = await self._verifier(deadline)
            try:
                async for event in self._serve(verifier):
                    if isinstance(event, verifier_pb2.Opened):
                        if not started:
                            yield Started(self.key.session_id, wanted.sampling.seed, len(wanted.prompt_ids))
                        started = True
                        continue
                    deadline = time.monotonic() + _PATIENCE_SECONDS
                    yield event
                    if isinstance(event, Done):
                        return
            except (grpc.aio.AioRpcError, _Silent) as error:
                if isinstance(error, grpc.aio.AioRpcError) and error.code() not in _MOVABLE:
                    raise _refusal(error) from error
                log.warning(
                    "verifier lost, moving the session",
                    session=self.key.session_id,
                    verifier=verifier.address,
                    why="silent" if isinstance(error, _Silent) else error.code().name,
                )
                self._failed.add(verifier.address)
                if isinstance(error, _Silent):
                    # Perhaps it was only slow.
                    self._silence_seconds *= 2
                if isinstance(error, _Silent) or error.code() == grpc.StatusCode.UNAVAILABLE:
                    self._fleet.verifiers[verifier.address].lost("call failed")
                async for event in self._claim():
                    yield event
                    if isinstance(event, Done):
                        return
                await asyncio.sleep(_MOVE_SECONDS * (len(self._failed) - 1))

    async def _record(self) -> None:
        if self._store is None:
            return
        try:
            await self._store.create(self._known_record())
        except StoreUnavailable as error:
            log.warning("session not recorded", session=self.key.session_id, error=str(error))
            if self._strict:
                raise RequestError(
                    UNAVAILABLE, "the session cannot be recorded now; try again later"
                ) from error

    def _known_record(self) -> SessionRecord:
        """The session as its client knows it."""
        wanted = self._wanted
        committed = tuple(self._committed)
        return SessionRecord(self.key, wanted.model_id, wanted.prompt_ids, wanted.sampling, committed)

    async def _verifier(self, deadline: float) -> VerifierView:
        while True:
            chosen = choose_verifier(self._fleet.verifier_views(), self._wanted.model_id, self._failed)
            if chosen is not None:
                self._fleet.verifiers[chosen.address].sent += 1
                return chosen
            if time.monotonic() > deadline:
                raise RequestError(UNAVAILABLE, "no verifier has room for this session; try again later")
            await asyncio.sleep(0.1)

    async def _serve(self, verifier: VerifierView) -> AsyncIterator[Chunk | Done | verifier_pb2.Opened]:
        """Read the session's tokens from one verifier. Raises `AioRpcError` when it fails, or `_Silent`."""
        wanted = self._wanted
        stub = verifier_pb2_grpc.VerifierServiceStub(self._fleet.verifiers[verifier.address].channel)
        call = stub.Open(
            verifier_pb2.OpenRequest(
                key=wire.key_to_proto(self.key),
                prompt_ids=wanted.prompt_ids,
                committed_ids=self._committed,
                sampling=wire.sampling_to_proto(wanted.sampling),
                model_id=wanted.model_id,
            ),
            metadata=self._trace,
        )
        speculating: asyncio.Task[None] | None = None
        try:
            async for response in self._heard(call):
                kind = response.WhichOneof("event")
                if kind == "opened":
                    if wanted.speculation and self._fleet.drafters:
                        speculating = asyncio.create_task(self._speculation(verifier).run())
                    yield response.opened
                elif kind == "tokens":
                    for chunk in self._take(response.tokens):
                        yield chunk
                        if self._stops.matched:
                            yield Done(FinishReason.STOP, self._receipt)
                            return
                elif kind == "finished":
                    async for event in self._end(response.finished):
                        yield event
                    return
            raise RequestError(INTERNAL, "the verifier ended the session without saying why")
        finally:
            call.cancel()
            if speculating is not None:
                speculating.cancel()
                with suppress(asyncio.CancelledError):
                    await speculating

    async def _heard(self, call: AsyncIterable[_Response]) -> AsyncIterator[_Response]:
        """What a verifier says. Raises `_Silent` when it says nothing for too long."""
        responses = aiter(call)
        while True:
            try:
                async with asyncio.timeout(self._silence_seconds):
                    response = await anext(responses)
            except StopAsyncIteration:
                return
            except TimeoutError as error:
                raise _Silent from error
            yield response

    def _speculation(self, verifier: VerifierView) -> Speculation:
        return Speculation(
            self._fleet,
            self.key,
            self._wanted.sampling,
            verifier.address,
            lambda: [*self._wanted.prompt_ids, *self._committed],
            self._check_seconds,
            self._trace,
        )

    def _take(self, tokens: verifier_pb2.CommittedTokens) -> Iterator[Chunk]:
        """New tokens, a drafter's and the target's own in chunks apart, so that each text has one origin.

        Those that are known already (after a move) are left out.
        """
        expected = len(self._wanted.prompt_ids) + len(self._committed)
        known = expected - tokens.position
        if known < 0:
            raise RequestError(
                INTERNAL, f"the verifier left out positions {expected} to {tokens.position - 1}"
            )
        fresh = tuple(tokens.token_ids[known:])
        if not fresh:
            return
        accepted = min(len(fresh), max(0, tokens.accepted - known))
        self._receipt = replace(
            self._receipt,
            steps=self._receipt.steps + 1,
            committed_tokens=self._receipt.committed_tokens + len(fresh),
            accepted_tokens=self._receipt.accepted_tokens + accepted,
        )
        if accepted:
            yield self._chunk(fresh[:accepted], accepted, durable=tokens.durable)
        if accepted < len(fresh):
            yield self._chunk(fresh[accepted:], 0, durable=tokens.durable)

    def _chunk(self, fresh: Sequence[int], accepted: int, *, durable: bool) -> Chunk:
        position = len(self._wanted.prompt_ids) + len(self._committed)
        self._committed += fresh
        text = self._stops.push(self._detokenizer.push(fresh))
        self._durable = durable
        return Chunk(text, position, tuple(fresh), accepted, durable)

    async def _end(self, finished: verifier_pb2.Finished) -> AsyncIterator[Chunk | Done]:
        reason = wire.finish_reason_from_proto(finished.reason)
        for event in self._last_events(reason, wire.receipt_from_proto(finished.receipt)):
            yield event

    def _last_events(self, reason: FinishReason, receipt: Receipt) -> list[Chunk | Done]:
        """What was held back, then the end."""
        tail = self._stops.push(self._detokenizer.flush())
        if self._stops.matched:
            reason = FinishReason.STOP
        tail += self._stops.flush()
        done = Done(reason, receipt)
        position = len(self._wanted.prompt_ids) + len(self._committed)
        return [Chunk(tail, position, (), 0, self._durable), done] if tail else [done]

    async def _claim(self) -> AsyncIterator[Chunk | Done]:
        """Fence the lost verifier out and take over what it had committed but not told."""
        record = await self._claimed()
        untold = record.committed_ids[len(self._committed) :]
        if untold:
            yield self._chunk(untold, 0, durable=True)
        if self._stops.matched:
            yield Done(FinishReason.STOP, self._receipt)
            return
        reason = record.finish_reason or self._reason_to_end()
        if reason is not None:
            for event in self._last_events(reason, self._receipt):
                yield event

    async def _claimed(self) -> SessionRecord:
        """The record under an epoch that no verifier has had. Raises `RequestError`.

        Without a store that knows the session it is what the client knows: tokens that only the lost
        verifier had are drawn again, and come out the same.
        """
        self.key = replace(self.key, epoch=self.key.epoch + 1)
        if self._store is None:
            return self._known_record()
        try:
            try:
                return await self._store.claim(self.key)
            except UnknownSession:
                log.warning("the store had lost the session", session=self.key.session_id)
            await self._store.restore(self._known_record())
        except Fenced as error:
            raise RequestError(UNAVAILABLE, f"the session has another owner: {error}") from error
        except StoreUnavailable as error:
            log.warning("session not claimed", session=self.key.session_id, error=str(error))
            if self._strict:
                raise RequestError(UNAVAILABLE, "the session cannot be moved now; try again later") from error
        return self._known_record()

    def _reason_to_end(self) -> FinishReason | None:
        """Why nothing may follow what is committed, if so."""
        sampling = self._wanted.sampling
        if self._committed and self._committed[-1] in sampling.stop_token_ids:
            return FinishReason.STOP
        return FinishReason.LENGTH if len(self._committed) >= sampling.max_tokens else None


def _refusal(error: grpc.aio.AioRpcError) -> RequestError:
    if error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED:
        return RequestError(OVERLOADED, error.details() or "the verifier is full; try again later")
    log.error("verifier refused a session", code=error.code().name, details=error.details())
    return RequestError(INTERNAL, f"the verifier refused the session: {error.details()}")
