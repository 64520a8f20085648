"""Sessions in this process's memory: same contract as Redis, nothing survives the process."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from paceline.session import FinishReason, SessionKey
from paceline.store.base import BaseMismatch, Fenced, SessionExists, SessionRecord, UnknownSession


class MemoryStore:
    """A dictionary of records."""

    def __init__(self) -> None:
        self._records: dict[str, SessionRecord] = {}

    async def create(self, record: SessionRecord) -> None:
        """See `SessionStore.create`."""
        if record.key.session_id in self._records:
            raise SessionExists(f"session {record.key.session_id} exists")
        self._records[record.key.session_id] = record

    async def append(self, key: SessionKey, base_length: int, ids: Sequence[int]) -> None:
        """See `SessionStore.append`."""
        record = self._owned(key)
        start = base_length - len(record.prompt_ids)
        known = record.committed_ids[max(start, 0) :]
        if not 0 <= start <= len(record.committed_ids) or tuple(ids[: len(known)]) != known:
            raise BaseMismatch(
                f"base length {base_length}, recorded {len(record.prompt_ids) + len(record.committed_ids)}"
            )
        fresh = tuple(ids[len(known) :])
        self._records[key.session_id] = replace(record, committed_ids=record.committed_ids + fresh)

    async def claim(self, session_id: str, owner: str) -> SessionRecord:
        """See `SessionStore.claim`."""
        record = self._known(session_id)
        claimed = replace(record, key=SessionKey(session_id, record.key.epoch + 1), owner=owner)
        self._records[session_id] = claimed
        return claimed

    async def finish(self, key: SessionKey, reason: FinishReason) -> None:
        """See `SessionStore.finish`."""
        self._records[key.session_id] = replace(self._owned(key), finish_reason=reason)

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
        if record.key.epoch != key.epoch:
            raise Fenced(f"epoch {key.epoch} does not own the session, {record.key.epoch} does")
        return record
