"""Limits on concurrency and rate, counted in Redis for all gateways or in memory for this one."""

from gateway.limits.base import (
    Account,
    Admission,
    Ask,
    Ledger,
    LedgerUnavailableError,
    Outcome,
    Settlement,
    UsageLimits,
)
from gateway.limits.fallback import FallbackLedger
from gateway.limits.memory import MemoryLedger
from gateway.limits.redis import RedisLedger

__all__ = [
    "Account",
    "Admission",
    "Ask",
    "FallbackLedger",
    "Ledger",
    "LedgerUnavailableError",
    "MemoryLedger",
    "Outcome",
    "RedisLedger",
    "Settlement",
    "UsageLimits",
]
