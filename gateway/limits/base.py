"""The contract of every ledger: who may go in, who waits, and what is charged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

# A place that is not renewed for so long is free again: its gateway has died.
LEASE_SECONDS = 15.0


@dataclass(frozen=True, slots=True)
class UsageLimits:
    """What an account may take; None does not limit.

    Tokens are a bucket that holds one minute's worth and fills evenly. It may be overdrawn, by answers that
    become longer than what was reserved for them; nobody gets in before that is paid back.
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
    """Something that is counted under limits: a key's holder, or everybody together."""

    name: str
    limits: UsageLimits


@dataclass(frozen=True, slots=True)
class Ask:
    """A request at the door: it needs a place, and `tokens`, in each of its accounts."""

    id: str
    accounts: tuple[Account, ...]
    tokens: int
    # Whether others wait before it, so that it must not overtake them.
    behind: bool = False


class Outcome(StrEnum):
    """What becomes of a request."""

    ADMITTED = "admitted"
    # It has a place in the queues: ask again.
    QUEUED = "queued"
    # No place for a session, nor in the queue.
    FULL = "full"
    # Too few tokens are left.
    TOKENS = "tokens"


@dataclass(frozen=True, slots=True)
class Admission:
    """A ledger's answer. `account` is the one that stands in the way, or the last where none does."""

    outcome: Outcome
    account: Account
    # Tokens that each account has left once this request is in; None where they are not limited.
    left: tuple[int | None, ...] = ()
    # TOKENS: when there will be enough.
    seconds: float = 0.0
    # FULL: requests that wait in that account.
    waiting: int = 0


@dataclass(frozen=True, slots=True)
class Settlement:
    """What has become of one account's requests at this gateway."""

    account: Account
    # To charge; negative gives back.
    tokens: int = 0
    # Ids that still run, that still wait, and that have ended or given up.
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
        """Let a request in under all its accounts' limits at once, or under none.

        One that has its places already, from a gateway that has died, keeps them and is not charged
        again. One that needs no tokens is not refused for a lack of them. A request that is refused holds
        nothing any more, not even the
        place that it waited in.
        """

    async def settle(self, settlements: Sequence[Settlement]) -> None:
        """Renew what runs and waits, also where it had been forgotten; free what ended; charge tokens."""

    async def close(self) -> None:
        """Let connections go."""
