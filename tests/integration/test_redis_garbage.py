"""Values under Paceline's keys that are none of its own: they concern one session or one count alone."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import redis.asyncio
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import REGISTRY

from gateway.limits import Account, Ask, Outcome, RedisLedger, Settlement, UsageLimits
from gateway.limits import redis as redis_module
from paceline.sampling import SamplingParams
from paceline.session import SessionKey
from paceline.store import (
    Append,
    FencedError,
    RedisStore,
    SessionRecord,
    StoreUnavailableError,
    UnknownSessionError,
)
from paceline.store.base import SessionExistsError
from tests.waiting import wait_until
from verifier_svc.commit import Committer
from verifier_svc.events import StepOutcome, Tokens

TEXT = st.one_of(
    st.binary(max_size=9), st.sampled_from([b"", b"-1", b"nan", b"inf", b"1e999", b"0x7", b"{}"])
)
FIELDS = ("epoch", "model", "sampling", "reply", "prompt", "finish", "claim", "level", "at", "other")
# What is written under a key: a command's name and its arguments after the key.
GARBAGE = st.one_of(
    st.tuples(st.just("SET"), TEXT),
    st.tuples(st.just("RPUSH"), TEXT),
    st.tuples(st.just("SADD"), TEXT),
    st.tuples(st.just("ZADD"), st.sampled_from([b"0", b"1e300", b"-inf", b"inf"]), TEXT),
    st.tuples(st.just("HSET"), st.sampled_from(FIELDS), TEXT),
)


@asynccontextmanager
async def beside(url: str) -> AsyncIterator[redis.asyncio.Redis]:
    client = redis.asyncio.from_url(url)
    yield client
    await client.aclose()


async def spoil(url: str, key: str, garbage: tuple[Any, ...], *, added: bool) -> None:
    """Put garbage under a key; with `added`, into the hash that is there."""
    async with beside(url) as client:
        if not (added and garbage[0] == "HSET" and await client.type(key) == b"hash"):
            await client.delete(key)
        await client.execute_command(garbage[0], key, *garbage[1:])


def record(reply: str = "") -> SessionRecord:
    return SessionRecord(
        SessionKey(secrets.token_urlsafe(12), 1), "tiny", (1, 2, 3), SamplingParams(max_tokens=9), reply=reply
    )


@settings(deadline=None, max_examples=60)
@given(part=st.sampled_from(["meta", "ids"]), garbage=GARBAGE, added=st.booleans())
def test_a_record_that_is_none_harms_no_other_session(
    redis_url: str, part: str, garbage: tuple[Any, ...], added: bool
) -> None:
    async def play() -> None:
        store = RedisStore(redis_url, ttl_seconds=60)
        spoiled, other = record(), record()
        for each in (spoiled, other):
            await store.create(each)
        await spoil(redis_url, f"paceline:{{{spoiled.key.session_id}}}:{part}", garbage, added=added)
        error, none = await store.append([Append(each.key, 3, (7, 8)) for each in (spoiled, other)])
        assert none is None
        assert not isinstance(error, StoreUnavailableError)
        for key in (spoiled.key, SessionKey(spoiled.key.session_id, 2)):
            try:
                await store.get(key.session_id)
                await store.claim(key)
            except (FencedError, UnknownSessionError):
                pass
        await store.close()

    asyncio.run(play())


@pytest.mark.parametrize("part", ["meta", "ids"])
@pytest.mark.parametrize("garbage", [("RPUSH", "x"), ("SADD", "x"), ("SET", b"x"), ("HSET", "epoch", "x")])
async def test_an_owner_records_its_session_anew_over_what_is_none(
    redis_url: str, part: str, garbage: tuple[Any, ...]
) -> None:
    store, mine = RedisStore(redis_url, ttl_seconds=60), record("its client")
    await store.create(mine)
    await spoil(redis_url, f"paceline:{{{mine.key.session_id}}}:{part}", garbage, added=False)
    (error,) = await store.append([Append(mine.key, 3, (7,))])
    assert error is not None
    await store.restore(mine)
    assert await store.append([Append(mine.key, 3, (7,))]) == [None]
    found = await store.get(mine.key.session_id)
    assert found is not None
    assert (found.committed_ids, found.reply) == ((7,), "its client")
    await store.close()


async def test_a_session_is_created_over_what_is_none_and_not_over_another(redis_url: str) -> None:
    store, mine = RedisStore(redis_url, ttl_seconds=60), record()
    await spoil(redis_url, f"paceline:{{{mine.key.session_id}}}:meta", ("SADD", "x"), added=False)
    await store.create(mine)
    assert await store.get(mine.key.session_id) == mine
    with pytest.raises(SessionExistsError):
        await store.create(SessionRecord(mine.key, "tiny", (9,), mine.sampling))
    await store.close()


def account(tokens: int | None = None) -> Account:
    return Account(secrets.token_hex(4), UsageLimits(1, 1, tokens))


def count_key(of: Account, part: str) -> str:
    return f"paceline:{{limits}}:{of.name}:{part}"


@settings(deadline=None, max_examples=60)
@given(
    part=st.sampled_from(["sessions", "waiting", "tokens"]),
    garbage=GARBAGE.filter(lambda each: each[0] != "ZADD"),
    added=st.booleans(),
    first=st.sampled_from(["settle", "admit"]),
)
def test_a_count_that_is_none_counts_as_none_and_harms_no_other(
    redis_url: str, part: str, garbage: tuple[Any, ...], added: bool, first: str
) -> None:
    async def play() -> None:
        ledger = RedisLedger(redis_url)
        spoiled, other = account(1000), account(1000)
        for each in (spoiled, other):
            await ledger.admit(Ask("old", (each,), 10))
        await spoil(redis_url, count_key(spoiled, part), garbage, added=added)
        settled = [Settlement(each, tokens=5, ended=("old",)) for each in (spoiled, other)]
        if first == "admit":
            await ledger.admit(Ask("old", (spoiled,), 10))
        await ledger.settle(settled)
        outcomes = [(await ledger.admit(Ask("new", (each,), 1))).outcome for each in (spoiled, other)]
        # A number may stand there as a level: then it is a count, and perhaps nothing is left.
        is_count = garbage[:2] == ("HSET", "level")
        assert outcomes[0] in (Outcome.ADMITTED, *((Outcome.TOKENS,) if is_count else ()))
        assert outcomes[1] is Outcome.ADMITTED
        await ledger.close()

    asyncio.run(play())


async def test_a_bucket_fills_on_when_the_servers_clock_has_gone_back(redis_url: str) -> None:
    ledger, key = RedisLedger(redis_url), account(60_000_000)
    await ledger.admit(Ask("1", (key,), 60_000_000))
    await ledger.settle([Settlement(key, ended=("1",))])
    async with beside(redis_url) as client:
        # As a clock leaves it that has gone back by an hour: what was written lies ahead of it.
        seconds, _ = await client.time()
        await client.hset(count_key(key, "tokens"), mapping={"level": 0, "at": (seconds + 3600) * 1000})

    async def is_in() -> bool:
        return (await ledger.admit(Ask("2", (key,), 100_000))).outcome is Outcome.ADMITTED

    assert not await is_in()
    await wait_until(is_in, "a tenth of a second's tokens are there")
    await ledger.close()


async def test_a_place_ends_when_the_servers_clock_has_gone_back(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_module, "_LEASE_MS", 300)
    ledger, key = RedisLedger(redis_url), account()
    await ledger.admit(Ask("of a gateway that has died", (key,), 0))
    async with beside(redis_url) as client:
        seconds, _ = await client.time()
        sessions = count_key(key, "sessions")
        await client.zadd(sessions, {"of a gateway that has died": (seconds + 3600) * 1000})
        await client.persist(sessions)

    async def is_in() -> bool:
        return (await ledger.admit(Ask("2", (key,), 0))).outcome is Outcome.ADMITTED

    await wait_until(is_in, "the place is free")
    await ledger.close()


async def test_what_piled_up_in_an_outage_is_settled(redis_url: str) -> None:
    ledger, key = RedisLedger(redis_url), account(1000)
    await ledger.admit(Ask("1", (key,), 0))
    ended = (*(secrets.token_urlsafe(24) for _ in range(300_000)), "1")
    await ledger.settle([Settlement(key, tokens=400, ended=ended)])
    admission = await ledger.admit(Ask("2", (key,), 0))
    assert admission.outcome is Outcome.ADMITTED
    assert admission.left[0] is not None
    assert 600 <= admission.left[0] < 1000
    await ledger.close()


@pytest.mark.parametrize("part", ["meta", "ids"])
async def test_a_verifier_records_a_session_anew_and_the_store_is_not_away(redis_url: str, part: str) -> None:
    store, spoiled, other = RedisStore(redis_url, ttl_seconds=60), record(), record()
    committer = Committer(store, strict=True, patience_seconds=9)
    async with committer.running():
        for each in (spoiled, other):
            await store.create(each)
        queues = [committer.open(each) for each in (spoiled, other)]
        key = f"paceline:{{{spoiled.key.session_id}}}:{part}"
        await spoil(redis_url, key, ("RPUSH", "x"), added=False)
        committer.push([(each.key, StepOutcome((7, 8), 0)) for each in (spoiled, other)])
        for queue in queues:
            assert await queue.get() == Tokens(3, (7, 8), 0, durable=True)
    assert REGISTRY.get_sample_value("paceline:store_away") == 0
    for each in (spoiled, other):
        found = await store.get(each.key.session_id)
        assert found is not None
        assert found.committed_ids == (7, 8)
    await store.close()
