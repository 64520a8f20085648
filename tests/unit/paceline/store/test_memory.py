"""What memory keeps of sessions is bounded, in time and in size; what is read is what is left."""

from __future__ import annotations

import pytest

from paceline.sampling import SamplingParams
from paceline.session import SessionKey
from paceline.store import Append, MemoryStore, SessionRecord, UnknownSessionError


def record(name: str, ids: int = 2) -> SessionRecord:
    return SessionRecord(SessionKey(name, 1), "m", tuple(range(ids)), SamplingParams(99))


class Clock:
    """Stands still."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


async def test_a_record_expires_after_its_last_write() -> None:
    clock = Clock()
    store = MemoryStore(ttl_seconds=10, clock=clock)
    await store.create(record("idle"))
    await store.create(record("busy"))
    clock.now = 9
    assert await store.append([Append(SessionKey("busy", 1), 2, (7,))]) == [None]
    clock.now = 11
    assert await store.get("idle") is None
    kept = await store.get("busy")
    assert kept is not None
    assert kept.committed_ids == (7,)
    with pytest.raises(UnknownSessionError):
        await store.claim(SessionKey("idle", 2))
    clock.now = 20
    assert await store.get("busy") is None


async def test_what_was_longest_not_written_makes_room() -> None:
    store = MemoryStore(max_ids=10)
    for name in ("a", "b", "c"):
        await store.create(record(name, 3))
    # One more id than there is room for.
    assert await store.append([Append(SessionKey("a", 1), 3, (7, 8))]) == [None]
    assert [name for name in "abc" if await store.get(name) is not None] == ["a", "c"]
    # One that is larger than all the room is kept alone.
    await store.create(record("large", 50))
    assert [name for name in ("a", "c", "large") if await store.get(name) is not None] == ["large"]
    await store.create(record("d", 3))
    assert [name for name in ("large", "d") if await store.get(name) is not None] == ["d"]
