"""Whom a session teaches: the sessions of its own tenant, and no others."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from drafter_svc.methods.base import Method


@dataclass(slots=True)
class _Present:
    """A tenant that has sessions here."""

    method: Method
    sessions: int = 0


class Tenants:
    """The methods of one model: each tenant its own, all begun alike.

    What tenants taught is kept behind their sessions for `most` of them; the one that was away longest goes
    first, and begins anew when it returns.
    """

    def __init__(self, first: Method, most: int) -> None:
        """`first` is as every tenant's method begins; it drafts for nobody itself."""
        self._first = first
        self._most = most
        self._present: dict[str, _Present] = {}
        self._away: OrderedDict[str, Method] = OrderedDict()

    def __len__(self) -> int:
        """Tenants of whom something is kept."""
        return len(self._present) + len(self._away)

    def enter(self, tenant: str) -> Method:
        """The method for a session that begins; `leave` it at its end."""
        present = self._present.get(tenant)
        if present is None:
            method = self._away.pop(tenant, None) or self._first.fresh()
            present = self._present[tenant] = _Present(method)
        present.sessions += 1
        return present.method

    def leave(self, tenant: str) -> None:
        """A session of the tenant's has ended."""
        present = self._present[tenant]
        present.sessions -= 1
        if present.sessions:
            return
        self._away[tenant] = self._present.pop(tenant).method
        while len(self._away) > self._most:
            self._away.popitem(last=False)
