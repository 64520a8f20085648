"""Sessions in this process's memory: same contract as Redis, nothing survives the process."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from paceline.session import FinishReason, SessionKey
from paceline.store.base import (
    Append,
    BaseMismatch,
    Fenced,
    SessionExists,
    SessionRecord,
    StoreError,
    UnknownSession,
)


class MemoryStore:
    """A dictionary of records."""

    def __init__(self) -> None:
        self._records: dict[str, SessionRecord] = {}

    async def create(self, record: SessionRecord) -> None:
        """See `SessionStore.create`."""
        if self._records.get(record.key.session_id, record) != record:
            raise SessionExists(f"session {record.key.session_id} exists")
        self._records[record.key.session_id] = record

    async def append(self, appends: Sequence[Append]) -> list[StoreError | None]:
        """See `SessionStore.append`."""
        return [self._append(append) for append in appends]

    def _append(self, append: Append) -> StoreError | None:
        try:
            record = self._owned(append.key)
        except (Fenced, UnknownSession) as error:
            return error
        start = append.base_length - len(record.prompt_ids)
        known = record.committed_ids[max(start, 0) :]
        common = min(len(known), len(append.token_ids))
        if not 0 <= start <= len(record.committed_ids) or append.token_ids[:common] != known[:common]:
            return BaseMismatch(
                f"session {record.key.session_id}: length {append.base_length} does not continue "
                f"{len(record.committed_ids)} committed ids"
            )
        self._records[record.key.session_id] = replace(
            record,
            committed_ids=record.committed_ids + append.token_ids[len(known) :],
            finish_reason=append.finish or record.finish_reason,
        )
        return None

    async def restore(self, record: SessionRecord) -> None:
        """See `SessionStore.restore`."""
        known = self._records.get(record.key.session_id)
        if known is not None and known.key.epoch > record.key.epoch:
            raise _fenced(record.key, known.key.epoch)
        ids = record.committed_ids
        late = known is not None and known.key == record.key and known.committed_ids[: len(ids)] == ids
        if not late or record.finish_reason is not None:
            self._records[record.key.session_id] = record

    async def claim(self, key: SessionKey, finish: FinishReason | None = None) -> SessionRecord:
        """See `SessionStore.claim`."""
        record = self._known(key.session_id)
        if record.key.epoch >= key.epoch:
            raise _fenced(key, record.key.epoch)
        claimed = replace(record, key=key, finish_reason=record.finish_reason or finish)
        self._records[key.session_id] = claimed
        return claimed

    async def get(self, session_id: str) -> SessionRecord | None:
        """See `SessionStore.get`."""
        return self._records.get(session_id)

    async def ping(self) -> None:
        """Memory always answers."""

    async def close(self) -> None:
        """Nothing to let go."""

    def _known(self, session_id: str) -> SessionRecord:
        try:
            return self._records[session_id]
        except KeyError:
            raise UnknownSession(f"no session {session_id} is recorded") from None

    def _owned(self, key: SessionKey) -> SessionRecord:
        record = self._known(key.session_id)
        if record.key.epoch < key.epoch:
            raise UnknownSession(f"session {key.session_id}: only epoch {record.key.epoch} is recorded")
        if record.key.epoch != key.epoch:
            raise _fenced(key, record.key.epoch)
        return record


def _fenced(key: SessionKey, owner: int) -> Fenced:
    return Fenced(f"session {key.session_id}: epoch {key.epoch} does not own it, {owner} does")
