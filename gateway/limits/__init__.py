"""How much at once and how often: counts under limits, of all gateways in Redis or of this one in memory."""

from gateway.limits.base import Account, Ask, Ledger, LedgerUnavailable, Limits, Outcome, Settlement, Verdict
from gateway.limits.fallback import FallbackLedger
from gateway.limits.memory import MemoryLedger
from gateway.limits.redis import RedisLedger

__all__ = [
    "Account",
    "Ask",
    "FallbackLedger",
    "Ledger",
    "LedgerUnavailable",
    "Limits",
    "MemoryLedger",
    "Outcome",
    "RedisLedger",
    "Settlement",
    "Verdict",
]
