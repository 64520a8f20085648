"""Counts of all gateways together, in Redis: every step one Lua script, by the server's clock.

An account's keys are `paceline:{limits}:<account>:sessions`, `:waiting` (sorted sets of ids by the ms at
which their place ends) and `:tokens` (hash: level, at). All accounts share one hash tag, so that a request
is let in under every limit that concerns it or under none.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gateway.limits.base import (
    LEASE_SECONDS,
    Account,
    Ask,
    LedgerUnavailable,
    Outcome,
    Settlement,
    Verdict,
)
from paceline.redis_client import Argument, Call, RedisClient, RedisUnavailable, Script

_ADMIT, _SETTLE = Script.named("admit"), Script.named("settle")
_LEASE_MS = round(LEASE_SECONDS * 1000)


class RedisLedger:
    """See `Ledger`. Safe for many tasks of one event loop.

    A settlement whose reply is lost may be charged twice: a few seconds' tokens.
    """

    def __init__(self, url: str, *, timeout_seconds: float = 1.0) -> None:
        """`timeout_seconds` bounds every call. Raises `SettingsError` where `url` names no Redis."""
        self._client = RedisClient(url, timeout_seconds=timeout_seconds)

    async def admit(self, ask: Ask) -> Verdict:
        """See `Ledger.admit`."""
        keys = [key for account in ask.accounts for key in _keys(account)]
        args: list[Argument] = [ask.id, _LEASE_MS, ask.tokens, int(ask.behind)]
        for account in ask.accounts:
            limits = account.limits
            bounds = (limits.concurrent_sessions, limits.queued_requests, limits.tokens_per_minute)
            args += [_bound(limit) for limit in bounds]
        try:
            reply = await self._client.run(_ADMIT, keys, *args)
        except RedisUnavailable as error:
            raise _unavailable(error) from error
        return _verdict(ask, reply)

    async def settle(self, settlements: Sequence[Settlement]) -> None:
        """See `Ledger.settle`."""
        calls = [
            Call(
                _keys(each.account),
                (
                    _LEASE_MS,
                    _bound(each.account.limits.tokens_per_minute),
                    each.tokens,
                    len(each.running),
                    len(each.waiting),
                    *each.running,
                    *each.waiting,
                    *each.ended,
                ),
            )
            for each in settlements
        ]
        for reply in await self._client.run_each(_SETTLE, calls):
            if isinstance(reply, RedisUnavailable):
                raise _unavailable(reply) from reply

    async def close(self) -> None:
        """See `Ledger.close`."""
        await self._client.close()


def _keys(account: Account) -> list[str]:
    return [f"paceline:{{limits}}:{account.name}:{what}" for what in ("sessions", "waiting", "tokens")]


def _bound(limit: int | None) -> int:
    return -1 if limit is None else limit


def _unavailable(error: Exception) -> LedgerUnavailable:
    return LedgerUnavailable(f"Redis does not answer for the limits: {error}")


def _verdict(ask: Ask, reply: list[Any]) -> Verdict:
    word = bytes(reply[0])
    if word == b"ADMITTED":
        left = tuple(None if each == b"" else int(each) for each in reply[1:])
        return Verdict(Outcome.ADMITTED, ask.accounts[-1], left)
    account = ask.accounts[int(reply[1]) - 1]
    if word == b"TOKENS":
        return Verdict(Outcome.TOKENS, account, seconds=int(reply[2]) / 1000)
    if word == b"FULL":
        return Verdict(Outcome.FULL, account, waiting=int(reply[2]))
    return Verdict(Outcome.QUEUED, account)
