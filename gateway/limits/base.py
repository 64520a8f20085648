"""The contract of all ledgers: who is admitted, who waits, and what is charged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

# A place that is not renewed for this long is free again: its gateway has died.
LEASE_SECONDS = 15.0


@dataclass(frozen=True, slots=True)
class UsageLimits:
    """What an account may take; None does not limit.

    Tokens are a bucket that holds one minute's worth and fills evenly. Answers longer than what was reserved
    for them may overdraw it; then nobody is admitted until the debt is paid back.
    """

    concurrent_sessions: int | None = None
    queued_requests: int | None = None
    tokens_per_minute: int | None = None

    @property
    def any(self) -> bool:
        """Whether there is something to count."""
        return self.concurrent_sessions is not None or self.tokens_per_minute is not None


@dataclass(frozen=True, slots=True)
class Account:
    """What is counted under limits: a key's holder, or all callers together."""

    name: str
    limits: UsageLimits


@dataclass(frozen=True, slots=True)
class Ask:
    """A request to be admitted: it needs a place, and `tokens`, in each of its accounts."""

    id: str
    accounts: tuple[Account, ...]
    tokens: int
    # Whether others wait before it, whom it must not overtake.
    behind: bool = False


class Outcome(StrEnum):
    """What becomes of a request."""

    ADMITTED = "admitted"
    # It waits in the queues: ask again.
    QUEUED = "queued"
    # Neither a session's place nor one in the queue is free.
    FULL = "full"
    # Too few tokens are left.
    TOKENS = "tokens"


@dataclass(frozen=True, slots=True)
class Admission:
    """A ledger's answer. `account`: the one whose limit is reached, else the last one."""

    outcome: Outcome
    account: Account
    # Tokens that each account has left after this request; None if they are not limited.
    left: tuple[int | None, ...] = ()
    # TOKENS: seconds until there are enough.
    seconds: float = 0.0
    # FULL: requests that wait in that account's queue.
    waiting: int = 0


@dataclass(frozen=True, slots=True)
class Settlement:
    """The state of one account's requests at this gateway, since the last settlement."""

    account: Account
    # To charge; negative to give back.
    tokens: int = 0
    # Ids of requests that run, that wait, and that have ended or given up.
    running: tuple[str, ...] = ()
    waiting: tuple[str, ...] = ()
    ended: tuple[str, ...] = ()


class LedgerUnavailableError(Exception):
    """The ledger did not answer; whether the call took effect is not known."""


class Ledger(Protocol):
    """Counts sessions, waiting requests and tokens of accounts. Methods raise `LedgerUnavailableError`.

    Places are leases: they end by themselves `LEASE_SECONDS` after they were last taken or settled.
    """

    async def admit(self, ask: Ask) -> Admission:
        """Admit a request under all its accounts' limits at once, or not at all.

        One that has its places already, from a gateway that has died, keeps them and is not charged again.
        One that needs no tokens is not refused for a lack of them. A refused request keeps nothing, not even
        its place in the queue.
        """

    async def settle(self, settlements: Sequence[Settlement]) -> None:
        """Renew running and waiting requests, even forgotten ones; free ended ones; charge tokens."""

    async def close(self) -> None:
        """Close connections."""
