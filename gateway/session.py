"""Follow one session: find it a verifier, read its tokens there, move it when its verifier dies."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass

import grpc

from gateway.caller import Caller
from gateway.detokenize import Detokenizer
from gateway.errors import INTERNAL, TIMEOUT, UNAVAILABLE, RequestError
from gateway.events import Event, Started
from gateway.fleet import Fleet
from gateway.generation import Generation
from gateway.ownership import Ownership
from gateway.places import Seat
from gateway.pod import Pod
from gateway.speculation import Speculation
from gateway.suspicion import Suspicion
from gateway.transcript import Told, Transcript
from paceline.net import rpc, wire
from paceline.service import telemetry
from paceline.service.tasks import cancel_and_wait
from paceline.session import SessionKey
from paceline.store import SessionRecord, SessionStore
from paceline.v1 import verifier_pb2, verifier_pb2_grpc

log = telemetry.logger(__name__)

# How long a session looks for a verifier before its client is told.
_PATIENCE_SECONDS = 20.0
# Before a move, for each one since the last token: the first is made at once.
_MOVE_SECONDS = 0.1
_LONGEST_MOVE_SECONDS = 1.0
# A verifier that ends a call so may serve the session elsewhere or later.
_MOVABLE = {
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.INTERNAL,
    grpc.StatusCode.UNKNOWN,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.CANCELLED,
}


_Response = verifier_pb2.OpenResponse
_Heard = Told | verifier_pb2.Opened


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
        self._deadline = deadline
        self._trace = tuple(trace)
        self._fleet = fleet
        self._seat = seat
        self._silence_seconds = policy.silence_seconds
        self._check_seconds = policy.check_seconds
        self._wanted = wanted
        self._caller = caller
        self._transcript = Transcript(wanted, detokenizer)
        self._owned = Ownership(
            store,
            key,
            lambda key: wanted.record(key, caller, self._transcript.committed_ids),
            strict=policy.strict,
        )
        # Verifiers that have failed the session.
        self._failed: set[str] = set()
        self._suspicion = Suspicion(fleet.turns)

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
                        wanted = self._wanted
                        yield Started(
                            self._owned.key.session_id, wanted.sampling.seed, len(wanted.prompt_ids)
                        )
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
            for event in self._transcript.catch_up(resumed):
                yield event
        deadline, moves = time.monotonic() + _PATIENCE_SECONDS, 0
        while not self._transcript.ended:
            if self._suspicion.suspect:
                await self._suspicion.turn()
                deadline = time.monotonic() + _PATIENCE_SECONDS
            if time.monotonic() > deadline:
                raise RequestError(UNAVAILABLE, "no verifier gets on with this session; try again later")
            verifier = await self._seat.verifier(self._failed, deadline)
            if not recorded:
                await self._owned.create()
            recorded, opened = True, False
            try:
                async with aclosing(self._serve(verifier)) as events:
                    async for event in events:
                        if isinstance(event, verifier_pb2.Opened):
                            self._seat.begun = opened = True
                        else:
                            deadline, moves = time.monotonic() + _PATIENCE_SECONDS, 0
                        yield event
            except (grpc.aio.AioRpcError, _Silent) as error:
                if not opened and _is_full(error):
                    self._seat.turned_away(verifier)
                    if not self._seat.begun:
                        # Its time is the line's.
                        deadline = time.monotonic() + _PATIENCE_SECONDS
                    continue
                moves += 1
                for event in self._transcript.catch_up(
                    await self._taken_from(verifier, error, deadline, opened=opened)
                ):
                    self._seat.begun = True
                    yield event
                if not self._transcript.ended:
                    await asyncio.sleep(min(_MOVE_SECONDS * (moves - 1), _LONGEST_MOVE_SECONDS))

    async def _taken_from(
        self,
        verifier: Pod,
        error: grpc.aio.AioRpcError | _Silent,
        deadline: float,
        *,
        opened: bool,
    ) -> SessionRecord:
        """Take the session from a verifier that has failed it; what had come of it until then.

        Raises `RequestError` where it goes no further.
        """
        if self._deadline is not None and time.monotonic() >= self._deadline:
            raise RequestError(TIMEOUT, "the request's time is over") from error
        if isinstance(error, grpc.aio.AioRpcError) and error.code() == grpc.StatusCode.ABORTED:
            return await self._owned.ended_elsewhere(error)
        if isinstance(error, grpc.aio.AioRpcError) and error.code() not in _MOVABLE:
            raise _refusal(error) from error
        log.warning(
            "verifier lost, moving the session",
            session=self._owned.key.session_id,
            verifier=verifier.address,
            why="silent" if isinstance(error, _Silent) else error.code().name,
        )
        self._failed.add(verifier.address)
        if isinstance(error, _Silent):
            # Perhaps it was only slow.
            self._silence_seconds *= 2
        if isinstance(error, _Silent) or error.code() == grpc.StatusCode.UNAVAILABLE:
            verifier.lost("call failed")
        draining = verifier.status.draining
        if opened and not draining and _is_death(error) and self._suspicion.died():
            log.error("verifiers die of a session, it is ended", session=self._owned.key.session_id)
            await self._owned.abandon()
            raise RequestError(INTERNAL, "verifiers die of this session; it goes no further") from error
        return await self._owned.claim(deadline)

    async def _serve(self, verifier: Pod) -> AsyncGenerator[_Heard, None]:
        """Read the session's tokens from one verifier. Raises `AioRpcError` when it fails, or `_Silent`."""
        call = self._open(verifier)
        speculation = self._speculation(verifier)
        speculating: asyncio.Task[None] | None = None
        try:
            async for response in self._heard(call):
                kind = response.WhichOneof("event")
                if kind == "opened":
                    if self._wanted.speculation:
                        speculating = asyncio.create_task(speculation.run())
                    yield response.opened
                elif kind == "tokens":
                    for event in self._take(response.tokens):
                        yield event
                elif kind == "drafter_aside":
                    speculation.put_aside(response.drafter_aside.seconds)
                elif kind == "finished":
                    for event in self._transcript.end(
                        wire.finish_reason_from_proto(response.finished.reason)
                    ):
                        yield event
                if self._transcript.ended:
                    return
            raise RequestError(INTERNAL, "the verifier ended the session without saying why")
        finally:
            call.cancel()
            self._seat.leave()
            if speculating is not None:
                await cancel_and_wait(speculating)

    def _open(self, verifier: Pod) -> grpc.aio.UnaryStreamCall[verifier_pb2.OpenRequest, _Response]:
        stub = verifier_pb2_grpc.VerifierServiceStub(verifier.channel)
        record = self._owned.record()
        call: grpc.aio.UnaryStreamCall[verifier_pb2.OpenRequest, _Response] = stub.Open(
            verifier_pb2.OpenRequest(
                key=wire.key_to_proto(record.key),
                prompt_ids=record.prompt_ids,
                committed_ids=record.committed_ids,
                sampling=wire.sampling_to_proto(record.sampling),
                model_id=record.model_id,
                reply=record.reply,
            ),
            metadata=self._trace,
            timeout=None if self._deadline is None else max(0.0, self._deadline - time.monotonic()),
        )
        return call

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

    def _speculation(self, verifier: Pod) -> Speculation:
        return Speculation(
            self._fleet,
            self._owned.key,
            self._wanted.sampling,
            self._caller.tenant,
            verifier.address,
            self._transcript.ids,
            self._check_seconds,
            self._trace,
        )

    def _take(self, tokens: verifier_pb2.CommittedTokens) -> list[Told]:
        before = self._transcript.position
        told = self._transcript.take(
            tokens.position,
            tokens.token_ids,
            accepted=tokens.accepted,
            drafted=tokens.drafted,
            durable=tokens.durable,
        )
        self._suspicion.got_on(self._transcript.position - before)
        return told


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
