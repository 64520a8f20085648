"""A session's record in the store, and the epoch under which this gateway owns the session."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace

from gateway.errors import TAKEN_OVER, UNAVAILABLE, RequestError
from paceline.service import telemetry
from paceline.session import FinishReason, SessionKey
from paceline.store import (
    Append,
    FencedError,
    SessionRecord,
    SessionStore,
    StoreUnavailableError,
    UnknownSessionError,
)

log = telemetry.logger(__name__)

# How often an unreachable store is asked again by a session that cannot move without it.
_CLAIM_SECONDS = 0.2


class Ownership:
    """The ownership of one session by this gateway."""

    def __init__(
        self,
        store: SessionStore,
        key: SessionKey,
        known: Callable[[SessionKey], SessionRecord],
        *,
        strict: bool,
    ) -> None:
        """`known`: makes the record of what the client was sent. `strict`: only recorded sessions go on."""
        self._store = store
        self._strict = strict
        self._known = known
        self.key = key

    def record(self) -> SessionRecord:
        """The record of what the client was sent."""
        return self._known(self.key)

    async def create(self) -> None:
        """Record a new session. Raises `RequestError` if it must be recorded and cannot be."""
        try:
            await self._store.create(self.record())
        except StoreUnavailableError as error:
            log.warning("session not recorded", session=self.key.session_id, error=str(error))
            if self._strict:
                raise RequestError(
                    UNAVAILABLE, "the session cannot be recorded now; try again later"
                ) from error

    async def claim(self, deadline: float) -> SessionRecord:
        """Fence the last verifier out and return the record, with all that this verifier committed.

        Returns the final record if a later owner has ended the session. Raises `RequestError`.
        """
        try:
            return await self._claimed(deadline)
        except FencedError as error:
            return await self.ended_elsewhere(error)

    async def ended_elsewhere(self, error: Exception) -> SessionRecord:
        """The record of a session that a later owner has ended. Raises `RequestError` if it still runs."""
        record = None
        with suppress(StoreUnavailableError):
            record = await self._store.get(self.key.session_id)
        if record is None or record.finish_reason is None:
            raise RequestError(TAKEN_OVER, "the session goes on in another stream") from error
        return record

    async def abandon(self) -> None:
        """End the session for good, so that nobody resumes it."""
        key = replace(self.key, epoch=self.key.epoch + 1)
        with suppress(StoreUnavailableError, UnknownSessionError, FencedError):
            await self._store.claim(key, finish=FinishReason.CANCELLED)

    @property
    def durable(self) -> bool:
        """Whether the record outlives this gateway."""
        return self._store.durable

    async def heard(
        self,
        base_length: int,
        token_ids: Sequence[int],
        finish: FinishReason | None = None,
        *,
        logprobs: bytes = b"",
    ) -> None:
        """Record ids from a verifier, at `base_length`, unless it writes them to a durable store itself.

        Raises `FencedError` if another stream has the session now, or it was cancelled.
        """
        if self._store.durable:
            return
        append = Append(self.key, base_length, tuple(token_ids), finish, logprobs)
        (error,) = await self._store.append([append])
        if isinstance(error, FencedError):
            raise error

    async def _claimed(self, deadline: float) -> SessionRecord:
        """The record, under a new epoch. Raises `FencedError` or `RequestError`.

        If the store does not know the session, the record is what the client was sent: tokens that only the
        lost verifier had are drawn again and come out the same. With strict durability it waits for a store
        that does not answer.
        """
        while True:
            # A new epoch each time: an unanswered claim may have taken effect, or may do so later.
            self.key = replace(self.key, epoch=self.key.epoch + 1)
            try:
                try:
                    return await self._store.claim(self.key)
                except UnknownSessionError:
                    log.warning("the store had lost the session", session=self.key.session_id)
                await self._store.restore(self.record())
                return self.record()
            except StoreUnavailableError as error:
                log.warning("session not claimed", session=self.key.session_id, error=str(error))
                if not self._strict:
                    return self.record()
                if time.monotonic() > deadline:
                    raise RequestError(
                        UNAVAILABLE, "the session cannot be moved now; try again later"
                    ) from error
            await asyncio.sleep(_CLAIM_SECONDS)
