"""The caller of a request: its scopes, its limits, and which sessions are its own."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

from gateway.limits.base import UsageLimits
from paceline.api_keys import Scope

_TENANT_DIGITS = 32


@dataclass(frozen=True, slots=True)
class Caller:
    """The holder of the request's API key; `id` is empty where keys are not required.

    `tenant` is the holder's name at drafters, which use what its sessions teach for its sessions only.
    """

    id: str = ""
    scopes: frozenset[Scope] = frozenset(Scope)
    limits: UsageLimits = field(default_factory=UsageLimits)
    tenant: str = ""

    def tenant_for(self, salt: str) -> str:
        """The tenant of sessions of this cache salt: one of its own where there is a salt."""
        if not salt:
            return self.tenant
        named = f"{self.tenant}\n{salt}".encode(errors="surrogatepass")
        return hashlib.sha256(named).hexdigest()[:_TENANT_DIGITS]


ANYBODY = Caller()
