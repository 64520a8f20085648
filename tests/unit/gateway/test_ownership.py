"""A session has one owner, and what its store knows is never lost on the way from one to the next."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest

from gateway.errors import TAKEN_OVER, UNAVAILABLE, RequestError
from gateway.ownership import Ownership
from paceline.sampling import SamplingParams
from paceline.session import FinishReason, SessionKey
from paceline.store import Append, FencedError, MemoryStore, SessionRecord, StoreUnavailableError

KEY = SessionKey("s", 1)
TOLD = SessionRecord(KEY, "m", (1, 2), SamplingParams(9), (3,))


class Away(MemoryStore):
    """A store that does not answer the first few calls."""

    def __init__(self, calls: int) -> None:
        super().__init__()
        self.calls = calls

    def _fail(self) -> None:
        self.calls -= 1
        if self.calls >= 0:
            raise StoreUnavailableError("away")

    async def create(self, record: SessionRecord) -> None:
        self._fail()
        await super().create(record)

    async def claim(self, key: SessionKey, finish: FinishReason | None = None) -> SessionRecord:
        self._fail()
        return await super().claim(key, finish)


def owned(store: MemoryStore, *, strict: bool = False) -> Ownership:
    return Ownership(store, KEY, lambda key: replace(TOLD, key=key), strict=strict)


def soon() -> float:
    return time.monotonic() + 10


async def test_a_claim_brings_what_the_lost_owner_committed_and_fences_it_out() -> None:
    store = MemoryStore()
    mine = owned(store)
    await mine.create()
    await store.append([Append(KEY, 3, (4, 5))])
    assert (await mine.claim(soon())).committed_ids == (3, 4, 5)
    (error,) = await store.append([Append(KEY, 5, (6,))])
    assert error is not None
    assert await store.append([Append(mine.key, 5, (7,))]) == [None]


async def test_a_session_that_the_store_has_lost_is_recorded_anew() -> None:
    store = MemoryStore()
    mine = owned(store)
    assert (await mine.claim(soon())).committed_ids == (3,)
    assert await store.get("s") == replace(TOLD, key=mine.key)


async def test_one_that_another_owner_goes_on_with_is_left_and_one_that_it_ended_is_told() -> None:
    store = MemoryStore()
    mine = owned(store)
    await mine.create()
    later = SessionKey("s", 7)
    await store.claim(later)
    with pytest.raises(RequestError) as raised:
        await mine.claim(soon())
    assert raised.value.kind is TAKEN_OVER
    await store.append([Append(later, 3, (4,), FinishReason.LENGTH)])
    record = await owned(store).claim(soon())
    assert (record.committed_ids, record.finish_reason) == ((3, 4), FinishReason.LENGTH)


async def test_while_the_store_is_away_relaxed_goes_on_and_strict_does_not() -> None:
    await owned(Away(1)).create()
    with pytest.raises(RequestError) as raised:
        await owned(Away(1), strict=True).create()
    assert raised.value.kind is UNAVAILABLE
    assert (await owned(Away(1)).claim(soon())).committed_ids == (3,)
    with pytest.raises(RequestError) as raised:
        await owned(Away(9), strict=True).claim(time.monotonic() - 1)
    assert raised.value.kind is UNAVAILABLE


async def test_strict_waits_for_a_store_that_comes_back_and_never_claims_an_epoch_twice() -> None:
    store = Away(0)
    mine = owned(store, strict=True)
    await mine.create()
    store.calls = 2
    await mine.claim(soon())
    assert mine.key.epoch == 4
    record = await store.get("s")
    assert record is not None
    assert record.key == mine.key


async def test_what_is_abandoned_has_ended_for_everybody() -> None:
    store = MemoryStore()
    mine = owned(store)
    await mine.create()
    await mine.abandon()
    record = await store.get("s")
    assert record is not None
    assert record.finish_reason is FinishReason.CANCELLED


class Durable(MemoryStore):
    """One that verifiers write to."""

    durable = True


async def test_what_is_heard_is_recorded_where_no_verifier_does_it() -> None:
    store = MemoryStore()
    mine = owned(store)
    await mine.create()
    await mine.heard(3, [4, 5])
    await mine.heard(5, [], FinishReason.LENGTH)
    record = await store.get("s")
    assert record is not None
    assert (record.committed_ids, record.finish_reason) == ((3, 4, 5), FinishReason.LENGTH)
    durable = Durable()
    theirs = owned(durable)
    await theirs.create()
    await theirs.heard(3, [4, 5])
    assert await durable.get("s") == TOLD


async def test_who_has_been_fenced_out_hears_no_more() -> None:
    store = MemoryStore()
    mine = owned(store)
    await mine.create()
    await store.claim(SessionKey("s", 2))
    with pytest.raises(FencedError):
        await mine.heard(3, [4])
    # One that memory has had no room for goes on, and cannot be resumed.
    await owned(MemoryStore()).heard(3, [4])
