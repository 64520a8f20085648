"""The record of each session: in Redis, where it survives any process, or in one process's memory."""

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
