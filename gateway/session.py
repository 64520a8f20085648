"""Follow one session: record it, open it, read its tokens, move it when its verifier dies."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Iterator, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass, replace

import grpc

from gateway.caller import Caller
from gateway.detokenize import Detokenizer, StopStrings
from gateway.errors import INTERNAL, TAKEN_OVER, TIMEOUT, UNAVAILABLE, RequestError
from gateway.events import Chunk, Done, Event, Started
from gateway.fleet import Fleet
from gateway.generation import Generation
from gateway.places import Seat
from gateway.router import VerifierView
from gateway.speculation import Speculation
from gateway.suspicion import Suspicion
from paceline import rpc, telemetry, wire
from paceline.session import FinishReason, Receipt, SessionKey
from paceline.store import Fenced, SessionRecord, SessionStore, StoreUnavailable, UnknownSession
from paceline.tasks import cancel_and_wait
from paceline.v1 import verifier_pb2, verifier_pb2_grpc

log = telemetry.logger(__name__)

# How long a session looks for a verifier before its client is told.
_PATIENCE_SECONDS = 20.0
# Before a move, for each one since the last token: the first is made at once.
_MOVE_SECONDS = 0.1
_LONGEST_MOVE_SECONDS = 1.0
# How often a store that is away is asked for a session that waits for it to move.
_CLAIM_SECONDS = 0.2
# A verifier that ends a call so may serve the session elsewhere or later.
_MOVABLE = {
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.INTERNAL,
    grpc.StatusCode.UNKNOWN,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.CANCELLED,
}


_Response = verifier_pb2.OpenResponse
_Heard = Chunk | Done | verifier_pb2.Opened


class _Silent(Exception):
    """A verifier neither serves its session nor says why."""


@dataclass(frozen=True, slots=True)
class Policy:
    """How sessions are followed."""

    # Nothing begins or moves while the store does not answer.
    strict: bool
    # A verifier that says nothing for so long is taken for hung.
    silence_seconds: float
    # How often a session's drafter is looked after.
    check_seconds: float


class Following:
    """One session followed to its last event, by one gateway, from verifier to verifier."""

    def __init__(
        self,
        fleet: Fleet,
        store: SessionStore | None,
        policy: Policy,
        key: SessionKey,
        wanted: Generation,
        caller: Caller,
        detokenizer: Detokenizer,
        seat: Seat,
        trace: Sequence[tuple[str, str]],
        deadline: float | None = None,
    ) -> None:
        """`seat` is the session's in the line for a place at a verifier.

        `deadline`, on the monotonic clock, goes with every call: no verifier works on behind it.
        """
        self.key = key
        self._deadline = deadline
        self._trace = tuple(trace)
        self._fleet = fleet
        self._seat = seat
        self._store = store
        self._strict = policy.strict
        self._silence_seconds = policy.silence_seconds
        self._check_seconds = policy.check_seconds
        self._wanted = wanted
        self._caller = caller
        self._detokenizer = detokenizer
        if wanted.form.kind == "text":
            detokenizer.follow(wanted.prompt_ids)
        self._stops = StopStrings(wanted.stops)
        self._committed: list[int] = []
        self._durable = True
        self._receipt = Receipt()
        self._failed: set[str] = set()
        self._suspicion = Suspicion(fleet.turns)

    def _started(self) -> Started:
        return Started(self.key.session_id, self._wanted.sampling.seed, len(self._wanted.prompt_ids))

    async def events(self, resumed: SessionRecord | None = None) -> AsyncGenerator[Event, None]:
        """All events of a new session, or of one that was begun elsewhere and is claimed by that record.

        `Started` comes first, whatever fails and when: text may be known before any verifier has opened the
        session for us, from the record of one that was lost before it said so. Raises `RequestError`.
        """
        started = False
        try:
            async with aclosing(self._told(resumed)) as told:
                async for event in told:
                    if not started:
                        yield self._started()
                    started = True
                    if not isinstance(event, verifier_pb2.Opened):
                        yield event
        finally:
            self._suspicion.end()

    async def _told(self, resumed: SessionRecord | None) -> AsyncGenerator[_Heard, None]:
        """What there is to tell, `Opened` wherever the session has got hold of a verifier or a record."""
        recorded = resumed is not None
        if resumed is not None:
            yield verifier_pb2.Opened()
            for event in self._untold(resumed):
                yield event
                if isinstance(event, Done):
                    return
        deadline, moves = time.monotonic() + _PATIENCE_SECONDS, 0
        while True:
            if self._suspicion.suspect:
                await self._suspicion.turn()
                deadline = time.monotonic() + _PATIENCE_SECONDS
            if time.monotonic() > deadline:
                raise RequestError(UNAVAILABLE, "no verifier gets on with this session; try again later")
            verifier = await self._seat.verifier(self._failed, deadline)
            if not recorded:
                await self._record()
            recorded, opened = True, False
            try:
                async with aclosing(self._serve(verifier)) as events:
                    async for event in events:
                        if isinstance(event, verifier_pb2.Opened):
                            self._seat.begun = opened = True
                        else:
                            deadline, moves = time.monotonic() + _PATIENCE_SECONDS, 0
                        yield event
                        if isinstance(event, Done):
                            return
            except (grpc.aio.AioRpcError, _Silent) as error:
                if not opened and _is_full(error):
                    self._seat.turned_away(self._fleet.verifiers[verifier.address])
                    if not self._seat.begun:
                        # Its time is the line's.
                        deadline = time.monotonic() + _PATIENCE_SECONDS
                    continue
                moves += 1
                for event in await self._moved(verifier, error, deadline, opened=opened):
                    self._seat.begun = True
                    yield event
                    if isinstance(event, Done):
                        return
                await asyncio.sleep(min(_MOVE_SECONDS * (moves - 1), _LONGEST_MOVE_SECONDS))

    async def _moved(
        self,
        verifier: VerifierView,
        error: grpc.aio.AioRpcError | _Silent,
        deadline: float,
        *,
        opened: bool,
    ) -> list[Chunk | Done]:
        """Take the session from a verifier that has failed it; what there is to tell before it goes on.

        Raises `RequestError` where it goes no further.
        """
        if self._deadline is not None and time.monotonic() >= self._deadline:
            raise RequestError(TIMEOUT, "the request's time is over") from error
        if isinstance(error, grpc.aio.AioRpcError) and error.code() == grpc.StatusCode.ABORTED:
            return await self._taken_over(error)
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
        draining = self._fleet.verifiers[verifier.address].status.draining
        if opened and not draining and _is_death(error) and self._suspicion.died():
            await self._abandon()
            raise RequestError(INTERNAL, "verifiers die of this session; it goes no further") from error
        return await self._claim(deadline)

    async def _abandon(self) -> None:
        """Let nobody resume the session."""
        log.error("verifiers die of a session, it is ended", session=self.key.session_id)
        if self._store is not None:
            key = replace(self.key, epoch=self.key.epoch + 1)
            with suppress(StoreUnavailable, UnknownSession, Fenced):
                await self._store.claim(key, finish=FinishReason.CANCELLED)

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
        return self._wanted.record(self.key, self._caller, self._committed)

    async def _serve(self, verifier: VerifierView) -> AsyncGenerator[_Heard, None]:
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
                reply=self._known_record().reply,
            ),
            metadata=self._trace,
            timeout=None if self._deadline is None else max(0.0, self._deadline - time.monotonic()),
        )
        speculation = self._speculation(verifier)
        speculating: asyncio.Task[None] | None = None
        try:
            async for response in self._heard(call):
                kind = response.WhichOneof("event")
                if kind == "opened":
                    if wanted.speculation and self._fleet.drafters:
                        speculating = asyncio.create_task(speculation.run())
                    yield response.opened
                elif kind == "tokens":
                    for chunk in self._take(response.tokens):
                        yield chunk
                        if self._stops.matched:
                            yield Done(FinishReason.STOP, self._receipt)
                            return
                elif kind == "drafter_aside":
                    speculation.put_aside(response.drafter_aside.seconds)
                elif kind == "finished":
                    for event in self._last_events(wire.finish_reason_from_proto(response.finished.reason)):
                        yield event
                    return
            raise RequestError(INTERNAL, "the verifier ended the session without saying why")
        finally:
            call.cancel()
            self._seat.leave()
            if speculating is not None:
                await cancel_and_wait(speculating)

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
            self._caller.tenant,
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
        self._suspicion.got_on(len(fresh))
        accepted = min(len(fresh), max(0, tokens.accepted - known))
        self._receipt = replace(
            self._receipt,
            steps=self._receipt.steps + 1,
            drafted_tokens=self._receipt.drafted_tokens + tokens.drafted,
            drafted_steps=self._receipt.drafted_steps + (tokens.drafted > 0),
        )
        for part, guessed in ((fresh[:accepted], accepted), (fresh[accepted:], 0)):
            if part and not self._stops.matched:
                chunk = self._chunk(part, guessed, durable=tokens.durable)
                self._receipt = replace(
                    self._receipt,
                    committed_tokens=self._receipt.committed_tokens + len(chunk.token_ids),
                    accepted_tokens=self._receipt.accepted_tokens + chunk.accepted,
                )
                yield chunk

    def _chunk(self, fresh: Sequence[int], accepted: int, *, durable: bool) -> Chunk:
        position = len(self._wanted.prompt_ids) + len(self._committed)
        text, told = self._text(fresh)
        self._committed += told
        self._durable = durable
        return Chunk(text, position, tuple(told), min(accepted, len(told)), durable)

    def _text(self, fresh: Sequence[int]) -> tuple[str, Sequence[int]]:
        """The text of new ids, and the ids that belong to it: none behind a stop string."""
        if not self._wanted.stops:
            return self._detokenizer.push(fresh), fresh
        text = ""
        first = len(self._wanted.prompt_ids) + len(self._committed)
        for count, token in enumerate(fresh, 1):
            new = self._detokenizer.push((token,))
            # The text of tokens that must not end it begins no stop string either.
            text += self._stops.push(new) if first + count > self._wanted.sampling.stop_from else new
            if self._stops.matched:
                return text, fresh[:count]
        return text, fresh

    def _last_events(self, reason: FinishReason) -> list[Chunk | Done]:
        """What was held back, then the end."""
        tail = self._stops.push(self._detokenizer.flush())
        if self._stops.matched:
            reason = FinishReason.STOP
        tail += self._stops.flush()
        done = Done(reason, self._receipt)
        position = len(self._wanted.prompt_ids) + len(self._committed)
        return [Chunk(tail, position, (), 0, self._durable), done] if tail else [done]

    def _untold(self, record: SessionRecord) -> list[Chunk | Done]:
        """What the session has come to since its client last heard, and its end if it has ended."""
        events: list[Chunk | Done] = []
        untold = record.committed_ids[len(self._committed) :]
        if untold:
            events.append(self._chunk(untold, 0, durable=True))
        if self._stops.matched:
            return [*events, Done(FinishReason.STOP, self._receipt)]
        reason = record.finish_reason or self._reason_to_end()
        return events if reason is None else [*events, *self._last_events(reason)]

    async def _claim(self, deadline: float) -> list[Chunk | Done]:
        """Fence the lost verifier out and take over what it had committed but not told."""
        try:
            return self._untold(await self._claimed(deadline))
        except Fenced as error:
            return await self._taken_over(error)

    async def _taken_over(self, error: Exception) -> list[Chunk | Done]:
        """The rest of a session that a later owner has ended. Raises `RequestError` while it goes on."""
        record = None
        if self._store is not None:
            with suppress(StoreUnavailable):
                record = await self._store.get(self.key.session_id)
        if record is None or record.finish_reason is None:
            raise RequestError(TAKEN_OVER, "the session goes on in another stream") from error
        return self._untold(record)

    async def _claimed(self, deadline: float) -> SessionRecord:
        """The record under an epoch that no verifier has had. Raises `Fenced` or `RequestError`.

        Without a store that knows the session it is what the client knows: tokens that only the lost
        verifier had are drawn again, and come out the same. Strict durability waits for a store that is away.
        """
        while True:
            # Another one each time: a claim that went unanswered may have taken effect, or still may.
            self.key = replace(self.key, epoch=self.key.epoch + 1)
            if self._store is None:
                return self._known_record()
            try:
                try:
                    return await self._store.claim(self.key)
                except UnknownSession:
                    log.warning("the store had lost the session", session=self.key.session_id)
                await self._store.restore(self._known_record())
                return self._known_record()
            except StoreUnavailable as error:
                log.warning("session not claimed", session=self.key.session_id, error=str(error))
                if not self._strict:
                    return self._known_record()
                if time.monotonic() > deadline:
                    raise RequestError(
                        UNAVAILABLE, "the session cannot be moved now; try again later"
                    ) from error
            await asyncio.sleep(_CLAIM_SECONDS)

    def _reason_to_end(self) -> FinishReason | None:
        """Why nothing may follow what is committed, if so."""
        sampling = self._wanted.sampling
        if self._committed and self._committed[-1] in sampling.stop_token_ids:
            return FinishReason.STOP
        return FinishReason.LENGTH if len(self._committed) >= sampling.max_tokens else None


def _is_full(error: grpc.aio.AioRpcError | _Silent) -> bool:
    """Whether the verifier has said that it has no place for one more session."""
    if isinstance(error, _Silent) or error.code() != grpc.StatusCode.RESOURCE_EXHAUSTED:
        return False
    return rpc.is_refusal(error)


def _is_death(error: grpc.aio.AioRpcError | _Silent) -> bool:
    """Whether the verifier or its engine has ended, rather than said why it does not serve the session."""
    if isinstance(error, _Silent):
        return False
    return error.code() == grpc.StatusCode.INTERNAL or not rpc.is_refusal(error)


def _refusal(error: grpc.aio.AioRpcError) -> RequestError:
    log.error("verifier refused a session", code=error.code().name, details=error.details())
    return RequestError(INTERNAL, f"the verifier refused the session: {error.details()}")
