"""The caller of a request: its scopes, its limits, and which sessions are its own."""

from __future__ import annotations

from dataclasses import dataclass, field

from gateway.limits.base import UsageLimits
from paceline.api_keys import Scope


@dataclass(frozen=True, slots=True)
class Caller:
    """The holder of the request's API key; `id` is empty where keys are not required.

    `tenant` is the holder's name at drafters, which use what its sessions teach for its sessions only.
    """

    id: str = ""
    scopes: frozenset[Scope] = frozenset(Scope)
    limits: UsageLimits = field(default_factory=UsageLimits)
    tenant: str = ""


ANYBODY = Caller()
