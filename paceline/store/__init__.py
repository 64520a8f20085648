"""The sessions' record: what survives any process. In Redis, or in memory for one process."""

from paceline.store.base import (
    Append,
    BaseMismatch,
    Fenced,
    SessionRecord,
    SessionStore,
    StoreError,
    StoreUnavailable,
    UnknownSession,
)
from paceline.store.memory import MemoryStore
from paceline.store.redis import RedisStore

__all__ = [
    "Append",
    "BaseMismatch",
    "Fenced",
    "MemoryStore",
    "RedisStore",
    "SessionRecord",
    "SessionStore",
    "StoreError",
    "StoreUnavailable",
    "UnknownSession",
]
