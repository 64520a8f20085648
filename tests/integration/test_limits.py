"""The contract of every ledger, held against memory and a real Redis."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
import redis.asyncio
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.admission import AdmissionControl
from gateway.caller import Caller
from gateway.errors import RequestError
from gateway.limits import (
    Account,
    Ask,
    FallbackLedger,
    Ledger,
    LedgerUnavailableError,
    MemoryLedger,
    Outcome,
    RedisLedger,
    Settlement,
    UsageLimits,
)
from gateway.limits import memory as memory_module
from gateway.limits import redis as redis_module
from tests.redis_servers import RedisServer
from tests.waiting import wait_until


@pytest.fixture(params=["memory", "redis"])
async def ledger(request: pytest.FixtureRequest, redis_url: str) -> AsyncIterator[Ledger]:
    made: Ledger = MemoryLedger() if request.param == "memory" else RedisLedger(redis_url)
    yield made
    await made.close()


@pytest.fixture
def short_leases(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_module, "LEASE_SECONDS", 0.3)
    monkeypatch.setattr(redis_module, "_LEASE_MS", 300)


def account(sessions: int | None = None, queued: int | None = None, tokens: int | None = None) -> Account:
    """One that no other test uses."""
    return Account(secrets.token_hex(4), UsageLimits(sessions, queued, tokens))


async def outcome(
    ledger: Ledger, id: str, *accounts: Account, tokens: int = 0, behind: bool = False
) -> Outcome:
    return (await ledger.admit(Ask(id, accounts, tokens, behind))).outcome


async def test_sessions_are_let_in_up_to_the_limit_and_then_queued(ledger: Ledger) -> None:
    key = account(2, 1)
    outcomes = [await outcome(ledger, id, key) for id in "1234"]
    assert outcomes == [Outcome.ADMITTED, Outcome.ADMITTED, Outcome.QUEUED, Outcome.FULL]
    verdict = await ledger.admit(Ask("5", (key,), 0))
    assert (verdict.account, verdict.waiting) == (key, 1)


async def test_who_waits_gets_in_once_a_session_has_ended(ledger: Ledger) -> None:
    key = account(1, 1)
    assert await outcome(ledger, "1", key) is Outcome.ADMITTED
    assert await outcome(ledger, "2", key) is Outcome.QUEUED
    assert await outcome(ledger, "2", key) is Outcome.QUEUED
    await ledger.settle([Settlement(key, ended=("1",))])
    assert await outcome(ledger, "2", key) is Outcome.ADMITTED
    assert await outcome(ledger, "3", key) is Outcome.QUEUED


async def test_who_gives_up_frees_its_place_in_the_queue(ledger: Ledger) -> None:
    key = account(1, 1)
    await outcome(ledger, "1", key)
    assert await outcome(ledger, "2", key) is Outcome.QUEUED
    await ledger.settle([Settlement(key, ended=("2",))])
    assert await outcome(ledger, "3", key) is Outcome.QUEUED


async def test_who_comes_behind_others_does_not_overtake_them(ledger: Ledger) -> None:
    key = account(1, 1)
    assert await outcome(ledger, "1", key, behind=True) is Outcome.QUEUED
    assert await outcome(ledger, "1", key) is Outcome.ADMITTED


async def test_a_request_is_let_in_under_all_its_accounts_or_counted_in_none(ledger: Ledger) -> None:
    everybody, first, second = account(1, 0), account(5, 0), account(5, 0)
    assert await outcome(ledger, "1", everybody, first) is Outcome.ADMITTED
    for _ in range(9):
        verdict = await ledger.admit(Ask("2", (everybody, second), 0))
        assert (verdict.outcome, verdict.account) == (Outcome.FULL, everybody)
    await ledger.settle([Settlement(everybody, ended=("1",))])
    assert await outcome(ledger, "2", everybody, second) is Outcome.ADMITTED


async def test_tokens_are_taken_from_every_account_and_come_back_with_time(ledger: Ledger) -> None:
    small, large = account(tokens=600), account(tokens=60_000)
    verdict = await ledger.admit(Ask("1", (large, small), 590))
    assert verdict.outcome is Outcome.ADMITTED
    assert verdict.left == (59_410, 10)
    refused = await ledger.admit(Ask("2", (large, small), 20))
    assert (refused.outcome, refused.account) == (Outcome.TOKENS, small)
    # Ten a second.
    assert 0 < refused.seconds <= 1
    await asyncio.sleep(refused.seconds)
    assert await outcome(ledger, "2", large, small, tokens=20) is Outcome.ADMITTED


async def test_what_was_not_used_is_given_back_but_never_more_than_a_minutes_worth(ledger: Ledger) -> None:
    key = account(tokens=60)
    await outcome(ledger, "1", key, tokens=60)
    assert await outcome(ledger, "2", key, tokens=30) is Outcome.TOKENS
    await ledger.settle([Settlement(key, -1000, ended=("1",))])
    verdict = await ledger.admit(Ask("2", (key,), 30))
    assert verdict.left == (30,)


async def test_an_overdrawn_account_pays_back_first(ledger: Ledger) -> None:
    key = account(tokens=60)
    await outcome(ledger, "1", key, tokens=1)
    await ledger.settle([Settlement(key, 119, running=("1",))])
    verdict = await ledger.admit(Ask("2", (key,), 1))
    assert verdict.outcome is Outcome.TOKENS
    assert 58 < verdict.seconds <= 61


async def test_a_request_of_more_than_a_minutes_tokens_needs_all_of_them(ledger: Ledger) -> None:
    key = account(tokens=60)
    verdict = await ledger.admit(Ask("1", (key,), 500))
    assert (verdict.outcome, verdict.left) == (Outcome.ADMITTED, (-440,))
    assert await outcome(ledger, "2", key, tokens=1) is Outcome.TOKENS


async def test_a_place_that_nobody_renews_is_free_again(ledger: Ledger, short_leases: None) -> None:
    key = account(1, 1)
    await outcome(ledger, "1", key)
    assert await outcome(ledger, "2", key) is Outcome.QUEUED
    assert await outcome(ledger, "3", key) is Outcome.FULL
    await asyncio.sleep(0.35)
    # Neither the session's nor the queue's is taken.
    assert await outcome(ledger, "4", key, behind=True) is Outcome.QUEUED
    assert await outcome(ledger, "3", key) is Outcome.ADMITTED


async def test_a_place_that_is_renewed_stays(ledger: Ledger, short_leases: None) -> None:
    key = account(1, 1)
    await outcome(ledger, "1", key)
    await outcome(ledger, "2", key)
    for _ in range(5):
        await asyncio.sleep(0.1)
        await ledger.settle([Settlement(key, running=("1",), waiting=("2",))])
    assert await outcome(ledger, "3", key) is Outcome.FULL


async def test_a_place_that_was_forgotten_counts_again_when_it_is_renewed(ledger: Ledger) -> None:
    key = account(1, 1)
    await ledger.settle([Settlement(key, running=("1",), waiting=("2",))])
    assert await outcome(ledger, "3", key) is Outcome.FULL


async def test_who_was_let_in_waits_no_more(ledger: Ledger) -> None:
    key = account(1, 1)
    await outcome(ledger, "1", key)
    # As it was when its gateway looked, a moment before.
    await ledger.settle([Settlement(key, waiting=("1",))])
    assert await outcome(ledger, "2", key) is Outcome.QUEUED


async def test_a_session_that_comes_again_keeps_its_place(ledger: Ledger) -> None:
    key = account(1, 1, 60)
    assert await outcome(ledger, "1", key, tokens=60) is Outcome.ADMITTED
    assert await outcome(ledger, "2", key, tokens=0) is Outcome.QUEUED
    assert await outcome(ledger, "1", key, tokens=0, behind=True) is Outcome.ADMITTED
    assert await outcome(ledger, "3", key, tokens=0) is Outcome.FULL


async def test_two_gateways_share_one_limit(redis_url: str) -> None:
    one, other = RedisLedger(redis_url), RedisLedger(redis_url)
    key = account(8, 0, 100_000)
    asked = [outcome((one, other)[n % 2], str(n), key, tokens=10) for n in range(40)]
    outcomes = await asyncio.gather(*asked)
    assert outcomes.count(Outcome.ADMITTED) == 8
    await one.close()
    await other.close()


async def test_nothing_is_left_in_redis(redis_url: str, short_leases: None) -> None:
    ledger, client = RedisLedger(redis_url), redis.asyncio.from_url(redis_url)
    key = account(1, 5, 10**9)
    await outcome(ledger, "1", key, tokens=5)
    await outcome(ledger, "2", key, tokens=5)
    names = await client.keys(f"paceline:{{limits}}:{key.name}:*")
    assert len(names) == 3
    for name in names:
        assert 0 < await client.pttl(name) <= 2000
    await asyncio.sleep(1.5)
    assert await client.keys(f"paceline:{{limits}}:{key.name}:*") == []
    await ledger.close()
    await client.aclose()


async def test_scripts_are_loaded_anew_after_redis_forgot_them(redis_url: str) -> None:
    ledger, client = RedisLedger(redis_url), redis.asyncio.from_url(redis_url)
    key = account(1, 0)
    await client.script_flush()
    assert await outcome(ledger, "1", key) is Outcome.ADMITTED
    await client.script_flush()
    await ledger.settle([Settlement(key, ended=("1",))])
    assert await outcome(ledger, "2", key) is Outcome.ADMITTED
    await ledger.close()
    await client.aclose()


async def test_a_redis_that_is_not_there_is_said_to_be_unavailable() -> None:
    ledger = RedisLedger("redis://127.0.0.1:1")
    with pytest.raises(LedgerUnavailableError):
        await outcome(ledger, "1", account(1, 0))
    with pytest.raises(LedgerUnavailableError):
        await ledger.settle([Settlement(account(1, 0), ended=("1",))])
    await ledger.close()


@pytest.mark.parametrize("durability", ["relaxed", "strict"])
async def test_while_redis_is_away_a_gateway_counts_alone_or_lets_nobody_in(
    durability: str, tmp_path: Path
) -> None:
    caller = Caller("k", limits=UsageLimits(2, 0, None))

    async def status(stack: AsyncExitStack, door: AdmissionControl) -> int:
        place = door.admitted(caller, secrets.token_hex(4), prompt_tokens=1, max_tokens=1)
        try:
            await stack.enter_async_context(place)
        except RequestError as error:
            return error.kind.status
        return 200

    strict = durability == "strict"
    with RedisServer("limits", tmp_path) as server:
        shared = RedisLedger(server.url, timeout_seconds=0.3)
        door = AdmissionControl(shared if strict else FallbackLedger(shared), UsageLimits(), queue_seconds=0)
        async with door.running(), AsyncExitStack() as stack:
            assert await status(stack, door) == 200
            server.pod.kill()
            # With the one from before two are here, of this gateway alone.
            assert [await status(stack, door) for _ in range(2)] == ([503, 503] if strict else [200, 429])
            server.start()
            # What the server has lost, and what it never knew, it learns from the next renewal.
            running = 1 if strict else 2
            name = "paceline:{limits}:key:k:sessions"
            await wait_until(lambda: server.asked.zcard(name) == running, "it knows who runs")
            if not strict:
                assert await status(stack, door) == 429
        await shared.close()


IDS = st.sampled_from("12345")
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("admit"), IDS, st.sampled_from("ab"), st.integers(0, 40), st.booleans()),
        st.tuples(
            st.sampled_from(["running", "waiting", "ended"]), IDS, st.sampled_from("ab"), st.integers(-9, 9)
        ),
    ),
    max_size=30,
)


@settings(max_examples=60, deadline=None)
@given(STEPS)
def test_redis_does_what_memory_does(redis_url: str, steps: list[tuple[Any, ...]]) -> None:
    run = secrets.token_hex(4)
    # So few tokens a minute that none come back while this runs.
    everybody = Account(f"all-{run}", UsageLimits(3, 2, 100))
    keys = {name: Account(f"{name}-{run}", UsageLimits(2, 2, 60)) for name in "ab"}

    async def outcomes(ledger: Ledger) -> list[object]:
        seen: list[object] = []
        for what, id, name, tokens, *behind in steps:
            accounts = (everybody, keys[name])
            if what == "admit":
                verdict = await ledger.admit(Ask(id, accounts, tokens, behind[0]))
                seen.append((verdict.outcome, verdict.account, verdict.left, verdict.waiting))
            else:
                await ledger.settle([Settlement(each, tokens, **{what: (id,)}) for each in accounts])
        await ledger.close()
        return seen

    def frozen() -> float:
        return 0.0

    assert asyncio.run(outcomes(RedisLedger(redis_url))) == asyncio.run(outcomes(MemoryLedger(frozen)))


async def test_a_paused_redis_is_given_up_after_a_second(redis_url: str) -> None:
    client, ledger = redis.asyncio.from_url(redis_url), RedisLedger(redis_url, timeout_seconds=0.2)
    await client.client_pause(1500)
    with pytest.raises(LedgerUnavailableError):
        await outcome(ledger, "1", account(1, 0))
    await client.ping()
    assert await outcome(ledger, "1", account(1, 0)) is Outcome.ADMITTED
    await ledger.close()
    await client.aclose()
