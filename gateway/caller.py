"""Who asks: what a request may do, and which sessions are its own."""

from __future__ import annotations

from dataclasses import dataclass, field

from gateway.limits.base import UsageLimits
from paceline.api_keys import Scope


@dataclass(frozen=True, slots=True)
class Caller:
    """The holder of the API key a request came with; `id` is empty where none is demanded.

    `tenant` is what drafters know the holder by: they keep what its sessions teach to its sessions.
    """

    id: str = ""
    scopes: frozenset[Scope] = frozenset(Scope)
    limits: UsageLimits = field(default_factory=UsageLimits)
    tenant: str = ""


ANYBODY = Caller()
