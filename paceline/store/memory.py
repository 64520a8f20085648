"""Session records in this process's memory, with the same contract as Redis; they end with it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from paceline.session import FinishReason, SessionKey
from paceline.store.base import (
    Append,
    BaseMismatchError,
    FencedError,
    SessionExistsError,
    SessionRecord,
    StoreError,
    UnknownSessionError,
)

# An id takes at most 36 bytes: 8 in its tuple, 28 as a number of its own.
_MAX_IDS = 2**20


class MemoryStore:
    """See `SessionStore`. The number of ids is bounded: records with the oldest last write are dropped."""

    durable = False

    def __init__(
        self,
        *,
        ttl_seconds: float = math.inf,
        max_ids: int = _MAX_IDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`ttl_seconds`: how long a record is kept after its last write. `max_ids`: of all records."""
        self._records: dict[str, SessionRecord] = {}
        # Time of each record's last write, oldest first.
        self._written: dict[str, float] = {}
        self._ids = 0
        self._ttl_seconds = ttl_seconds
        self._max_ids = max_ids
        self._clock = clock

    async def create(self, record: SessionRecord) -> None:
        known = self._get(record.key.session_id)
        if known is not None and known != record:
            raise SessionExistsError(f"session {record.key.session_id} exists")
        self._put(record)

    async def append(self, appends: Sequence[Append]) -> list[StoreError | None]:
        return [self._append(append) for append in appends]

    def _append(self, append: Append) -> StoreError | None:
        try:
            record = self._owned(append.key)
        except (FencedError, UnknownSessionError) as error:
            return error
        start = append.base_length - len(record.prompt_ids)
        known = record.committed_ids[max(start, 0) :]
        common = min(len(known), len(append.token_ids))
        if not 0 <= start <= len(record.committed_ids) or append.token_ids[:common] != known[:common]:
            return BaseMismatchError(
                f"session {record.key.session_id}: length {append.base_length} does not continue "
                f"{len(record.committed_ids)} committed ids"
            )
        self._put(
            replace(
                record,
                committed_ids=record.committed_ids + append.token_ids[len(known) :],
                committed_logprobs=record.committed_logprobs
                + append.logprobs[len(known) * record.logprobs.width :],
                finish_reason=append.finish or record.finish_reason,
            )
        )
        return None

    async def restore(self, record: SessionRecord) -> None:
        known = self._get(record.key.session_id)
        if known is not None and known.key.epoch > record.key.epoch:
            raise _fenced(record.key, known.key.epoch)
        ids = record.committed_ids
        late = known is not None and known.key == record.key and known.committed_ids[: len(ids)] == ids
        if not late or record.finish_reason is not None:
            self._put(record)

    async def claim(self, key: SessionKey, finish: FinishReason | None = None) -> SessionRecord:
        record = self._known(key.session_id)
        if record.key.epoch >= key.epoch:
            raise _fenced(key, record.key.epoch)
        claimed = replace(record, key=key, finish_reason=record.finish_reason or finish)
        self._put(claimed)
        return claimed

    async def get(self, session_id: str) -> SessionRecord | None:
        return self._get(session_id)

    async def ping(self) -> None:
        """Memory always answers."""

    async def close(self) -> None:
        """Nothing to close."""

    def _put(self, record: SessionRecord) -> None:
        self._forget(record.key.session_id)
        self._records[record.key.session_id] = record
        self._written[record.key.session_id] = self._clock()
        self._ids += _ids(record)
        while self._ids > self._max_ids and len(self._written) > 1:
            self._forget(next(iter(self._written)))

    def _get(self, session_id: str) -> SessionRecord | None:
        while self._written:
            oldest, written = next(iter(self._written.items()))
            if self._clock() - written <= self._ttl_seconds:
                break
            self._forget(oldest)
        return self._records.get(session_id)

    def _forget(self, session_id: str) -> None:
        self._written.pop(session_id, None)
        record = self._records.pop(session_id, None)
        if record is not None:
            self._ids -= _ids(record)

    def _known(self, session_id: str) -> SessionRecord:
        record = self._get(session_id)
        if record is None:
            raise UnknownSessionError(f"no session {session_id} is recorded")
        return record

    def _owned(self, key: SessionKey) -> SessionRecord:
        record = self._known(key.session_id)
        if record.key.epoch < key.epoch:
            raise UnknownSessionError(f"session {key.session_id}: only epoch {record.key.epoch} is recorded")
        if record.key.epoch != key.epoch:
            raise _fenced(key, record.key.epoch)
        return record


def _ids(record: SessionRecord) -> int:
    return len(record.prompt_ids) + len(record.committed_ids)


def _fenced(key: SessionKey, owner: int) -> FencedError:
    return FencedError(f"session {key.session_id}: epoch {key.epoch} does not own it, {owner} does")
