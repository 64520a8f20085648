"""Records are written where the store answers, restored where it lost them, and caught up when it is back."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from paceline.sampling import SamplingParams
from paceline.session import SessionKey
from paceline.store import Append, FencedError, MemoryStore, SessionRecord, StoreError, StoreUnavailableError
from tests.waiting import wait_until
from verifier_svc.commitments import Commitment, Commitments
from verifier_svc.recording import Recording

PROMPT = (1, 2, 3)


class Store(MemoryStore):
    away = False
    appends = 0

    async def ping(self) -> None:
        if self.away:
            raise StoreUnavailableError("away")

    async def append(self, appends: Sequence[Append]) -> list[StoreError | None]:
        self.appends += 1
        if self.away:
            return [StoreUnavailableError("away")] * len(appends)
        return await super().append(appends)

    async def ids(self) -> tuple[int, ...]:
        record = await self.get("s")
        assert record is not None
        return record.committed_ids


class World:
    def __init__(self, *, strict: bool) -> None:
        self.store = Store()
        self.stopped: list[asyncio.Task[None]] = []
        self.commitments = Commitments()
        self.recording = Recording(self.store, self.commitments, strict=strict, on_stop=self.stopped.append)
        self.record = SessionRecord(SessionKey("s", 1), "m", PROMPT, SamplingParams(max_tokens=9))
        self.session = self.commitments.open(self.record)

    async def write(self, *added: int) -> StoreError | None:
        self.session.added += added
        append = self.session.append()
        (error,) = await self.recording.write([(self.session, append)])
        self.commitments.settle(self.session, append, error)
        return error


@pytest.fixture(params=[False, True], ids=["relaxed", "strict"])
async def world(request: pytest.FixtureRequest) -> World:
    made = World(strict=request.param)
    await made.store.create(made.record)
    return made


async def test_ids_are_appended(world: World) -> None:
    assert await world.write(5, 6) is None
    assert await world.write(7) is None
    assert await world.store.ids() == (5, 6, 7)


async def test_a_record_that_was_lost_is_restored_whole(world: World) -> None:
    await world.write(5)
    await world.store.restore(world.record)
    assert await world.write(6) is None
    assert await world.store.ids() == (5, 6)


async def test_a_later_owner_is_not_overwritten(world: World) -> None:
    await world.store.claim(SessionKey("s", 2))
    assert isinstance(await world.write(5), FencedError)
    assert await world.store.ids() == ()


async def test_what_a_store_missed_is_recorded_when_it_is_back(world: World) -> None:
    world.store.away = True
    assert isinstance(await world.write(5), StoreUnavailableError)
    # As a committer holds it, where durability is strict.
    world.session.held_since = 1.0
    asked = world.store.appends
    assert isinstance(await world.write(6), StoreUnavailableError)
    assert world.store.appends == asked, "nobody waits for a store that is looked after"
    await wait_until(lambda: world.store.appends > asked, "it is offered what it lacks")
    world.store.away = False
    await wait_until(lambda: bool(world.stopped), "it is found")
    assert world.stopped[0].exception() is None
    assert await world.store.ids() == (5, 6)
    assert not world.commitments.lacking()
    assert await world.write(7) is None


async def test_the_search_can_be_called_off(world: World) -> None:
    world.recording.cancel()
    world.store.away = True
    await world.write(5)
    world.recording.cancel()
    await wait_until(lambda: bool(world.stopped), "it has stopped")
    assert world.stopped[0].cancelled()


async def test_a_session_that_began_meanwhile_goes_to_the_store(world: World) -> None:
    """With strict durability only those wait that are held already; else nobody asks."""
    strict = world.recording._strict
    world.store.away = True
    await world.write(5)
    asked = world.store.appends
    other = Commitment(
        SessionRecord(SessionKey("other", 1), "m", PROMPT, SamplingParams(max_tokens=9)), added=[6]
    )
    await world.recording.write([(other, other.append())])
    assert world.store.appends == asked + strict
    world.recording.cancel()
