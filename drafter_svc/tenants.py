"""Keeps tenants apart: a session teaches, and is drafted with, its own tenant's method only."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

from drafter_svc.hypothesis import Hypothesis, Lesson
from drafter_svc.methods.base import Ask, Method, TeachableMethod
from paceline.tree import TokenTree


@dataclass(slots=True)
class _Present:
    """A tenant that has sessions here."""

    tenant: str
    method: TeachableMethod
    sessions: int = 0


class Tenants(Method):
    """A method made of one method per tenant, all of which begin alike.

    A tenant's method is kept after its last session, for the `most` tenants that left last. Any other tenant
    begins anew when it returns.
    """

    def __init__(self, first: TeachableMethod, most: int) -> None:
        """`first` is how every tenant's method begins; it drafts for nobody itself."""
        self.name = first.name
        self._first = first
        self._most = most
        self._present: dict[str, _Present] = {}
        self._away: OrderedDict[str, TeachableMethod] = OrderedDict()
        # By session id.
        self._sessions: dict[str, _Present] = {}
        self._unsettled: list[TeachableMethod] = []

    def __len__(self) -> int:
        """Tenants whose method is kept."""
        return len(self._present) + len(self._away)

    def draft(self, asks: Sequence[Ask]) -> list[TokenTree]:
        """See `Method.draft`."""
        return [tree for ask in asks for tree in self._of(ask.session).draft([ask])]

    def observe(self, session: Hypothesis, lesson: Lesson) -> None:
        """See `Method.observe`."""
        method = self._of(session)
        method.observe(session, lesson)
        if not self._unsettled or self._unsettled[-1] is not method:
            self._unsettled.append(method)

    def settle(self) -> bool:
        """See `Method.settle`."""
        if self._unsettled and not self._unsettled[-1].settle():
            self._unsettled.pop()
        return bool(self._unsettled)

    def forget(self, session_id: str) -> None:
        """See `Method.forget`. A tenant leaves with its last session."""
        present = self._sessions.pop(session_id, None)
        if present is None:
            return
        present.method.forget(session_id)
        present.sessions -= 1
        if present.sessions:
            return
        del self._present[present.tenant]
        self._away[present.tenant] = present.method
        while len(self._away) > self._most:
            self._away.popitem(last=False)

    def _of(self, session: Hypothesis) -> TeachableMethod:
        """The method of the session's tenant, which enters with its first session."""
        present = self._sessions.get(session.key.session_id)
        if present is None:
            present = self._present.get(session.tenant)
            if present is None:
                method = self._away.pop(session.tenant, None) or self._first.fresh()
                present = self._present[session.tenant] = _Present(session.tenant, method)
            present.sessions += 1
            self._sessions[session.key.session_id] = present
        return present.method
