"""The record of each session: in Redis, where it survives any process, or in one process's memory."""

from paceline.store.base import (
    Append,
    BaseMismatchError,
    FencedError,
    SessionRecord,
    SessionStore,
    StoreError,
    StoreUnavailableError,
    UnknownSessionError,
)
from paceline.store.memory import MemoryStore
from paceline.store.redis import RedisStore

__all__ = [
    "Append",
    "BaseMismatchError",
    "FencedError",
    "MemoryStore",
    "RedisStore",
    "SessionRecord",
    "SessionStore",
    "StoreError",
    "StoreUnavailableError",
    "UnknownSessionError",
]
