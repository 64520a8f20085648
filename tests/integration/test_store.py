"""The contract of every session store, held against memory, a real Redis and a real Redis Cluster."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, replace

import pytest
from redis.asyncio import Redis, RedisCluster

from paceline.constraints.constraint import Constraint
from paceline.logprobs import LogprobsWanted, TokenLogprobs, pack
from paceline.redis.url import open_url
from paceline.sampling import SamplingParams
from paceline.session import FinishReason, SessionKey
from paceline.store import (
    Append,
    BaseMismatchError,
    FencedError,
    MemoryStore,
    RedisStore,
    SessionRecord,
    SessionStore,
    StoreUnavailableError,
    UnknownSessionError,
)
from paceline.store.base import SessionExistsError

PROMPT = (1, 2, 70000)
TTL = 60


KINDS = {"redis": "redis_url", "cluster": "redis_cluster_url"}


def url_of(request: pytest.FixtureRequest) -> str:
    found: str = request.getfixturevalue(KINDS[request.param])
    return found


@pytest.fixture(params=list(KINDS))
def redis_kind(request: pytest.FixtureRequest) -> str:
    """A URL of each kind. Servers are started here, outside of any event loop."""
    return url_of(request)


@pytest.fixture(params=["memory", *KINDS])
def kind(request: pytest.FixtureRequest) -> str:
    return "" if request.param == "memory" else url_of(request)


def redis_store(url: str) -> RedisStore:
    # Patient, since the machine may be busy.
    return RedisStore(url, ttl_seconds=TTL, timeout_seconds=30)


@pytest.fixture
async def store(kind: str) -> AsyncIterator[SessionStore]:
    made: SessionStore = redis_store(kind) if kind else MemoryStore()
    yield made
    await made.close()


@dataclass(frozen=True)
class Beside:
    """A store, and what a test asks or does to its servers past it."""

    store: SessionStore
    asked: RedisCluster | Redis

    async def keys(self, session_id: str) -> list[bytes]:
        return [key async for key in self.asked.scan_iter(f"*{session_id}*")]


@pytest.fixture
async def beside(redis_kind: str) -> AsyncIterator[Beside]:
    made, asked = redis_store(redis_kind), open_url(redis_kind, 30)
    yield Beside(made, asked)
    await asked.aclose()
    await made.close()


def record(**changes: object) -> SessionRecord:
    sampling = SamplingParams(
        9,
        temperature=0.8,
        top_k=5,
        top_p=0.9,
        min_p=0.1,
        typical_p=0.7,
        seed=2**63 + 7,
        stop_token_ids=frozenset({2, 3}),
        presence_penalty=0.1,
        frequency_penalty=-0.1,
        repetition_penalty=1.1,
        logit_bias=((5, -100.0), (7, 0.25)),
        allowed_token_ids=frozenset({5, 6, 7}),
        bad_words=((5,), (6, 7)),
        constraint=Constraint.choice(["é"]),
    )
    fields = {"key": SessionKey(secrets.token_urlsafe(12), 1), "model_id": "m", "prompt_ids": PROMPT}
    return SessionRecord(**{**fields, "sampling": sampling, **changes})  # type: ignore[arg-type]


async def append(
    store: SessionStore, key: SessionKey, base: int, ids: Sequence[int], finish: FinishReason | None = None
) -> None:
    """One append alone; raises what kept it."""
    (error,) = await store.append([Append(key, base, tuple(ids), finish)])
    if error is not None:
        raise error


async def kept(store: SessionStore, key: SessionKey) -> SessionRecord:
    """The record that must be there."""
    found = await store.get(key.session_id)
    assert found is not None
    return found


async def test_a_record_comes_back_as_it_was_created(store: SessionStore) -> None:
    made = record(committed_ids=(4, 2**32 - 1), reply="its client")
    await store.create(made)
    assert await store.get(made.key.session_id) == made


async def test_what_was_never_created_is_none(store: SessionStore) -> None:
    assert await store.get("never") is None


async def test_an_id_is_created_once(store: SessionStore) -> None:
    made = record()
    await store.create(made)
    with pytest.raises(SessionExistsError, match=made.key.session_id):
        await store.create(record(key=made.key, prompt_ids=(9,)))
    assert await store.get(made.key.session_id) == made
    await store.create(made)
    await append(store, made.key, 3, [5])
    with pytest.raises(SessionExistsError, match=made.key.session_id):
        await store.create(made)
    assert (await kept(store, made.key)).committed_ids == (5,)


async def test_appends_follow_one_another(store: SessionStore) -> None:
    made = record()
    await store.create(made)
    await append(store, made.key, 3, [5, 6])
    await append(store, made.key, 5, [7])
    assert (await kept(store, made.key)).committed_ids == (5, 6, 7)


async def test_a_retried_append_counts_once(store: SessionStore) -> None:
    made = record()
    await store.create(made)
    await append(store, made.key, 3, [5])
    for _ in range(3):
        await append(store, made.key, 4, [6, 7])
    assert (await kept(store, made.key)).committed_ids == (5, 6, 7)


async def test_after_a_lost_reply_the_owner_may_send_more_than_it_did(store: SessionStore) -> None:
    made = record()
    await store.create(made)
    await append(store, made.key, 3, [5, 6])
    await append(store, made.key, 3, [5, 6, 2**32 - 1])
    await append(store, made.key, 5, [2**32 - 1, 8])
    await append(store, made.key, 3, [5])
    assert (await kept(store, made.key)).committed_ids == (5, 6, 2**32 - 1, 8)


@pytest.mark.parametrize(
    ("base", "ids"),
    [(6, [8]), (6, []), (2, [8]), (0, [8]), (4, [8]), (3, [5, 8, 7]), (4, [7, 6])],
    ids=[
        "gap",
        "gap before nothing",
        "in the prompt",
        "zero",
        "other ids",
        "longer but other",
        "overlapping but other",
    ],
)
async def test_ids_that_do_not_continue_are_refused(store: SessionStore, base: int, ids: list[int]) -> None:
    made = record()
    await store.create(made)
    await append(store, made.key, 3, [5, 6])
    with pytest.raises(BaseMismatchError):
        await append(store, made.key, base, ids)
    assert (await kept(store, made.key)).committed_ids == (5, 6)


async def test_a_claim_grows_the_epoch_and_fences_the_old_owner_out(store: SessionStore) -> None:
    made = record()
    session_id = made.key.session_id
    await store.create(made)
    await append(store, made.key, 3, [5])
    claimed = await store.claim(SessionKey(session_id, 2))
    assert claimed.key == SessionKey(session_id, 2)
    assert claimed == replace(made, key=SessionKey(session_id, 2), committed_ids=(5,))
    with pytest.raises(FencedError):
        await append(store, made.key, 4, [6])
    with pytest.raises(FencedError):
        await append(store, made.key, 3, [5])
    with pytest.raises(FencedError):
        await append(store, made.key, 3, [], FinishReason.STOP)
    await append(store, claimed.key, 4, [6])
    assert (await kept(store, made.key)).committed_ids == (5, 6)


async def test_a_claim_may_end_a_session_in_the_same_step(store: SessionStore) -> None:
    """So whoever is fenced out by it finds the end, and never a session that goes on elsewhere."""
    made = record()
    await store.create(made)
    ended = await store.claim(SessionKey(made.key.session_id, 2), FinishReason.CANCELLED)
    assert ended.finish_reason is FinishReason.CANCELLED
    assert await kept(store, made.key) == ended
    with pytest.raises(FencedError):
        await append(store, made.key, 3, [5])


async def test_a_claim_changes_no_end(store: SessionStore) -> None:
    made = record()
    await store.create(made)
    await append(store, made.key, 3, [5], FinishReason.STOP)
    ended = await store.claim(SessionKey(made.key.session_id, 2), FinishReason.CANCELLED)
    assert ended.finish_reason is FinishReason.STOP


async def test_of_claims_at_once_one_gets_the_epoch(store: SessionStore) -> None:
    made = record()
    await store.create(made)
    for epoch in (2, 3):  # in the second round every connection is open, so the claims truly meet
        key = SessionKey(made.key.session_id, epoch)
        claimed = await asyncio.gather(*(store.claim(key) for _ in range(8)), return_exceptions=True)
        (winner,) = [each for each in claimed if isinstance(each, SessionRecord)]
        assert sum(isinstance(each, FencedError) for each in claimed) == 7
        assert await store.get(made.key.session_id) == winner


async def test_a_claim_that_comes_late_changes_nothing(store: SessionStore) -> None:
    """Its caller has gone on without an answer, and the next owner has recorded the session anew."""
    made = record(committed_ids=(5,), key=SessionKey(secrets.token_urlsafe(12), 2))
    await store.restore(made)
    with pytest.raises(FencedError, match=made.key.session_id):
        await store.claim(made.key)
    await append(store, made.key, 4, [6])


async def test_a_restore_that_comes_late_takes_nothing_back(store: SessionStore) -> None:
    made = record(committed_ids=(5,))
    await store.restore(made)
    await append(store, made.key, 4, [6], FinishReason.STOP)
    await store.restore(made)
    last = await kept(store, made.key)
    assert (last.committed_ids, last.finish_reason) == ((5, 6), FinishReason.STOP)


async def test_a_record_of_an_earlier_owner_is_as_good_as_none(store: SessionStore) -> None:
    made = record()
    await store.create(made)
    with pytest.raises(UnknownSessionError):
        await append(store, SessionKey(made.key.session_id, 2), 3, [5])


@pytest.mark.parametrize("known", [None, (), (5, 7)], ids=["nothing", "less", "other ids"])
async def test_an_owner_restores_what_the_store_has_lost(
    store: SessionStore, known: tuple[int, ...] | None
) -> None:
    made = record(committed_ids=(5, 6), reply="its client", finish_reason=FinishReason.STOP)
    if known is not None:
        await store.create(replace(made, committed_ids=known, finish_reason=None))
    await store.restore(made)
    assert await store.get(made.key.session_id) == made
    later = replace(made, key=SessionKey(made.key.session_id, 7), finish_reason=None)
    await store.restore(later)
    with pytest.raises(FencedError, match=made.key.session_id):
        await store.restore(made)
    assert await store.get(made.key.session_id) == later


async def test_one_sessions_error_is_no_others(store: SessionStore) -> None:
    first, second = record(), record()
    await store.create(first)
    await store.create(second)
    stranger = SessionKey("nobody", 1)
    errors = await store.append(
        [
            Append(first.key, 3, (5,)),
            Append(stranger, 3, (5,)),
            Append(second.key, 4, (5,)),
            Append(second.key, 3, (6,)),
        ]
    )
    assert [type(error) for error in errors] == [
        type(None),
        UnknownSessionError,
        BaseMismatchError,
        type(None),
    ]
    assert (await kept(store, second.key)).committed_ids == (6,)


async def test_a_server_that_forgot_its_scripts_is_told_them_again(beside: Beside) -> None:
    many = [record() for _ in range(8)]
    for step in range(2):
        for each in many if step == 0 else []:
            await beside.store.create(each)
        await beside.asked.script_flush()
        assert await beside.store.append([Append(each.key, 3 + step, (step,)) for each in many]) == [None] * 8
    await beside.asked.script_flush()
    assert (await beside.store.claim(SessionKey(many[0].key.session_id, 2))).committed_ids == (0, 1)


async def test_many_sessions_are_committed_at_once(store: SessionStore) -> None:
    many = [record() for _ in range(100)]
    await asyncio.gather(*(store.create(each) for each in many))
    errors = await store.append([Append(each.key, 3, (place,)) for place, each in enumerate(many)])
    assert errors == [None] * 100
    assert [(await kept(store, each.key)).committed_ids for each in many] == [
        (place,) for place in range(100)
    ]


async def test_nothing_is_committed_of_nothing(store: SessionStore) -> None:
    assert await store.append([]) == []


@pytest.mark.parametrize("half", ["meta", "ids"])
async def test_half_a_record_is_none(beside: Beside, half: str) -> None:
    """As a server leaves it that evicts keys."""
    made, store = record(committed_ids=(5,)), beside.store
    await store.create(made)
    (lost,) = [key for key in await beside.keys(made.key.session_id) if key.endswith(half.encode())]
    await beside.asked.delete(lost)
    assert await store.get(made.key.session_id) is None
    with pytest.raises(UnknownSessionError):
        await append(store, made.key, 4, [6])
    with pytest.raises(UnknownSessionError):
        await append(store, made.key, 3, [])
    with pytest.raises(UnknownSessionError):
        await store.claim(SessionKey(made.key.session_id, 2))
    await store.restore(replace(made, committed_ids=()))
    assert (await kept(store, made.key)).committed_ids == ()
    await append(store, made.key, 3, [5])


@pytest.mark.parametrize("reason", list(FinishReason))
async def test_the_end_is_recorded(store: SessionStore, reason: FinishReason) -> None:
    made = record()
    await store.create(made)
    await append(store, made.key, 3, [5], reason)
    assert (await kept(store, made.key)).finish_reason is reason


async def test_an_unknown_session_is_named_in_every_refusal(store: SessionStore) -> None:
    key = SessionKey("nobody", 1)
    with pytest.raises(UnknownSessionError, match="nobody"):
        await append(store, key, 3, [5])
    with pytest.raises(UnknownSessionError, match="nobody"):
        await store.claim(SessionKey("nobody", 2))
    with pytest.raises(UnknownSessionError, match="nobody"):
        await append(store, key, 3, [], FinishReason.STOP)


async def test_every_redis_key_has_a_ttl_and_the_sessions_hash_tag(beside: Beside) -> None:
    store, made = beside.store, record()

    async def keys_are_mortal() -> None:
        keys = await beside.keys(made.key.session_id)
        assert len(keys) == 3
        for key in keys:
            assert f"{{{made.key.session_id}}}".encode() in key
            assert 0 < await beside.asked.ttl(key) <= TTL
            await beside.asked.persist(key)  # so that the next step has to set it again

    await store.create(made)
    await keys_are_mortal()
    await append(store, made.key, 3, [5])
    await keys_are_mortal()
    await append(store, made.key, 3, [5])
    await keys_are_mortal()
    claimed = await store.claim(SessionKey(made.key.session_id, 2))
    await keys_are_mortal()
    await append(store, claimed.key, 4, [], FinishReason.STOP)
    await keys_are_mortal()
    await store.restore(replace(claimed, committed_ids=(7,)))
    await keys_are_mortal()
    for key in await beside.keys(made.key.session_id):
        await beside.asked.delete(key)


async def test_a_store_that_nobody_answers_for_is_unavailable() -> None:
    store = RedisStore("redis://127.0.0.1:1", ttl_seconds=TTL, timeout_seconds=0.5)
    made = record()
    for call in (store.ping(), store.create(made), store.get("x"), append(store, made.key, 3, [5])):
        with pytest.raises(StoreUnavailableError):
            await call
    await store.close()


WANTED = LogprobsWanted(top=1)


def scores(*places: int) -> bytes:
    return pack(TokenLogprobs(-float(place), place, (place,), (-1.0,)) for place in places)


async def test_logprobs_stay_with_their_ids(store: SessionStore) -> None:
    made = record(logprobs=WANTED)
    await store.create(made)

    async def added(base: int, ids: tuple[int, ...], logprobs: bytes) -> None:
        assert await store.append([Append(made.key, base, ids, None, logprobs)]) == [None]

    await added(3, (10, 11), scores(10, 11))
    # After a lost reply the owner sends the same again, with what it has drawn since.
    await added(3, (10, 11, 12), scores(10, 11, 12))
    await added(4, (11, 12), scores(11, 12))
    await added(6, (13,), scores(13))
    whole = replace(made, committed_ids=(10, 11, 12, 13), committed_logprobs=scores(10, 11, 12, 13))
    assert await store.get(made.key.session_id) == whole
    later = replace(made.key, epoch=2)
    assert await store.claim(later) == replace(whole, key=later)
    restored = replace(whole, key=replace(made.key, epoch=3))
    await store.restore(restored)
    assert await store.get(made.key.session_id) == restored


async def test_ids_without_their_logprobs_are_half_a_record(beside: Beside) -> None:
    made = record(logprobs=WANTED, committed_ids=(10, 11), committed_logprobs=scores(10, 11))
    await beside.store.create(made)
    assert await beside.store.get(made.key.session_id) == made
    session_id = made.key.session_id
    await beside.asked.delete(f"paceline:{{{session_id}}}:logprobs")
    assert await beside.store.get(session_id) is None
    with pytest.raises(UnknownSessionError):
        await beside.store.claim(replace(made.key, epoch=2))
