"""Counts of all gateways together, in Redis. Each step is one Lua script, by the server's clock.

An account's keys are `paceline:{limits}:<account>:sessions`, `:waiting` (sorted sets of ids by the ms at
which their place ends) and `:tokens` (hash: level, at). All accounts share one hash tag, so that a request
is let in under every limit that concerns it or under none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from gateway.limits.base import (
    LEASE_SECONDS,
    Account,
    Admission,
    Ask,
    LedgerUnavailableError,
    Outcome,
    Settlement,
)
from paceline.redis.client import Argument, BadValueError, Call, RedisClient, RedisUnavailableError, Script
from paceline.service import telemetry

_ADMIT, _SETTLE = Script.named("admit"), Script.named("settle")
_LEASE_MS = round(LEASE_SECONDS * 1000)
# Most ids of each kind in one run of settle.lua, and most runs in one round trip, which has a timeout: there
# may be many after an outage.
_MAX_IDS = 1000
_MAX_CALLS = 20

log = telemetry.logger(__name__)


class RedisLedger:
    """See `Ledger`. Safe for many tasks of one event loop.

    A settlement whose reply is lost may be charged twice: a few seconds' tokens.
    """

    def __init__(self, url: str, *, timeout_seconds: float = 1.0) -> None:
        """`timeout_seconds` bounds each call. Raises `SettingsError` if `url` is no Redis URL."""
        self._client = RedisClient(url, timeout_seconds=timeout_seconds)

    async def admit(self, ask: Ask) -> Admission:
        keys = [key for account in ask.accounts for key in _keys(account)]
        args: list[Argument] = [ask.id, _LEASE_MS, ask.tokens, int(ask.behind)]
        for account in ask.accounts:
            limits = account.limits
            bounds = (limits.concurrent_sessions, limits.queued_requests, limits.tokens_per_minute)
            args += [_bound(limit) for limit in bounds]
        try:
            reply = await self._client.run(_ADMIT, keys, *args)
        except (RedisUnavailableError, BadValueError) as error:
            raise _unavailable(error) from error
        return _verdict(ask, reply)

    async def settle(self, settlements: Sequence[Settlement]) -> None:
        parts = [_parts(each) for each in settlements]
        # Runs that charge tokens come last, and together: if one before them fails, all are settled again.
        calls = [_call(part) for each in parts for part in each[:-1]]
        while calls:
            await self._settle(calls[:_MAX_CALLS])
            calls = calls[_MAX_CALLS:]
        await self._settle([_call(each[-1]) for each in parts])

    async def _settle(self, calls: Sequence[Call]) -> None:
        for reply in await self._client.run_each(_SETTLE, calls):
            if isinstance(reply, RedisUnavailableError):
                raise _unavailable(reply) from reply
            if isinstance(reply, BadValueError):
                # It concerns one account only.
                log.error("limits of one account were not settled", error=str(reply))

    async def close(self) -> None:
        await self._client.close()


def _keys(account: Account) -> list[str]:
    return [f"paceline:{{limits}}:{account.name}:{what}" for what in ("sessions", "waiting", "tokens")]


def _parts(settlement: Settlement) -> list[Settlement]:
    """Split a settlement into ones of few ids each; the last one charges the tokens."""
    running, waiting, ended = settlement.running, settlement.waiting, settlement.ended
    parts = [
        Settlement(
            settlement.account,
            running=running[start : start + _MAX_IDS],
            waiting=waiting[start : start + _MAX_IDS],
            ended=ended[start : start + _MAX_IDS],
        )
        for start in range(0, max(len(running), len(waiting), len(ended), 1), _MAX_IDS)
    ]
    return [*parts[:-1], replace(parts[-1], tokens=settlement.tokens)]


def _call(settlement: Settlement) -> Call:
    """The arguments of `settle.lua`."""
    return Call(
        _keys(settlement.account),
        (
            _LEASE_MS,
            _bound(settlement.account.limits.tokens_per_minute),
            settlement.tokens,
            len(settlement.running),
            len(settlement.waiting),
            *settlement.running,
            *settlement.waiting,
            *settlement.ended,
        ),
    )


def _bound(limit: int | None) -> int:
    return -1 if limit is None else limit


def _unavailable(error: Exception) -> LedgerUnavailableError:
    return LedgerUnavailableError(f"Redis does not answer for the limits: {error}")


def _verdict(ask: Ask, reply: list[Any]) -> Admission:
    word = bytes(reply[0])
    if word == b"ADMITTED":
        left = tuple(None if each == b"" else int(each) for each in reply[1:])
        return Admission(Outcome.ADMITTED, ask.accounts[-1], left)
    account = ask.accounts[int(reply[1]) - 1]
    if word == b"TOKENS":
        return Admission(Outcome.TOKENS, account, seconds=int(reply[2]) / 1000)
    if word == b"FULL":
        return Admission(Outcome.FULL, account, waiting=int(reply[2]))
    return Admission(Outcome.QUEUED, account)
