"""Sessions on the way from their steps to the store and to their clients. On the event loop."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field, replace

from paceline.session import FinishReason, SessionKey
from paceline.store import Append, SessionRecord, StoreError, StoreUnavailableError
from verifier_svc.events import Event, Lost, StepOutcome
from verifier_svc.session_trace import SessionTrace

# Sessions that ended while the store was away and are kept until it is back.
_MAX_ENDED = 4096


@dataclass(slots=True, eq=False)
class Commitment:
    """One session: the ids that it has added, how many of them are recorded, how many are emitted."""

    # As it was opened.
    record: SessionRecord
    events: asyncio.Queue[Event] = field(default_factory=asyncio.Queue)
    # Ids added since it was opened; the first `recorded` are in the store, the first `emitted` are emitted.
    added: list[int] = field(default_factory=list)
    recorded: int = 0
    emitted: int = 0
    # Packed, of the ids added.
    added_logprobs: bytearray = field(default_factory=bytearray)
    # Outcomes that are not emitted yet.
    waiting: list[StepOutcome] = field(default_factory=list)
    finish: FinishReason | None = None
    finish_recorded: bool = False
    # Since when its tokens wait for the store, with strict durability.
    held_since: float | None = None
    # None unless its trace is recorded.
    trace: SessionTrace | None = None

    @property
    def lacking(self) -> bool:
        """Whether the store has not got all of it."""
        return self.recorded < len(self.added) or (self.finish is not None and not self.finish_recorded)

    @property
    def opened_length(self) -> int:
        """Length of its text when it was opened."""
        return len(self.record.prompt_ids) + len(self.record.committed_ids)

    def append(self) -> Append:
        """What the store lacks."""
        lacking = tuple(self.added[self.recorded :])
        logprobs = bytes(self.added_logprobs[self.recorded * self.record.logprobs.width :])
        return Append(self.record.key, self.opened_length + self.recorded, lacking, self.finish, logprobs)

    def whole(self) -> SessionRecord:
        """The record as it should be."""
        return replace(
            self.record,
            committed_ids=(*self.record.committed_ids, *self.added),
            committed_logprobs=self.record.committed_logprobs + bytes(self.added_logprobs),
            finish_reason=self.finish,
        )


class Commitments:
    """All sessions that are streamed, and those that have ended and are not recorded yet."""

    def __init__(self) -> None:
        self._open: dict[SessionKey, Commitment] = {}
        self._ended: dict[Commitment, None] = {}
        # Sessions with something to commit, in the order in which it came.
        self._waiting: dict[Commitment, None] = {}
        self._wake = asyncio.Event()

    @property
    def busy(self) -> bool:
        """Whether a session is streamed, or has ended and is not recorded yet."""
        return bool(self._open or self._ended)

    def open(self, record: SessionRecord, trace: SessionTrace | None = None) -> Commitment:
        """Begin with a session that is recorded as `record`."""
        session = self._open[record.key] = Commitment(record, trace=trace)
        return session

    def get(self, key: SessionKey) -> Commitment | None:
        """The session, if it is streamed."""
        return self._open.get(key)

    def streamed(self) -> list[Commitment]:
        """All sessions that are streamed."""
        return list(self._open.values())

    def close(self, key: SessionKey) -> Commitment | None:
        """Stream a session no more; gives the one that was."""
        return self._open.pop(key, None)

    def keep(self, session: Commitment) -> None:
        """Keep a session that has ended until it is recorded; beyond a bound the oldest is let go."""
        while len(self._ended) >= _MAX_ENDED:
            del self._ended[next(iter(self._ended))]
        self._ended[session] = None

    def lacking(self) -> list[Commitment]:
        """Sessions of which the store has not got everything."""
        return [session for session in (*self._open.values(), *self._ended) if session.lacking]

    def queue(self, session: Commitment) -> None:
        """Have the session committed with the next batch; `wake` begins it."""
        self._waiting[session] = None

    def wake(self) -> None:
        """Begin the next batch."""
        self._wake.set()

    async def next_batch(self) -> list[Commitment]:
        """Wait for `wake`; sessions that were queued, in order."""
        await self._wake.wait()
        self._wake.clear()
        batch, self._waiting = list(self._waiting), {}
        return batch

    def settle(self, session: Commitment, append: Append, error: StoreError | None) -> bool:
        """Note the store's answer to an append. A session that is fenced out is lost; whether it goes on."""
        if error is None:
            session.recorded += len(append.token_ids)
            session.finish_recorded = append.finish is not None
            session.held_since = None
            if not session.lacking:
                self._ended.pop(session, None)
        elif not isinstance(error, StoreUnavailableError):
            session.events.put_nowait(Lost(str(error)))
            self._open.pop(session.record.key, None)
            self._ended.pop(session, None)
            return False
        return True
