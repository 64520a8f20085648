"""Every verifier this drafter talks to: a link is opened for the first session, dropped when of no use."""

from __future__ import annotations

import asyncio

import grpc

from drafter_svc import methods, metrics
from drafter_svc.config import DrafterSettings
from drafter_svc.hypothesis import Hypothesis
from drafter_svc.methods.base import Method
from drafter_svc.rounds import Counters
from drafter_svc.stream import VerifierLink
from drafter_svc.tenants import Tenants
from paceline.net.rpc import Refused
from paceline.net.tls import Identity
from paceline.service import telemetry
from paceline.service.tasks import let_end

log = telemetry.logger(__name__)

_SWEEP_SECONDS = 5.0


class Links:
    """Owns one task per verifier and, for each model, what its tenants teach beyond their sessions."""

    def __init__(self, drafter_id: str, settings: DrafterSettings, identity: Identity | None) -> None:
        self.counters = Counters()
        self.draining = False
        self._drafter_id = drafter_id
        self._settings = settings
        self._identity = identity
        self._links: dict[str, tuple[VerifierLink, asyncio.Task[None]]] = {}
        self._tenants: dict[tuple[str, str, int], Tenants] = {}
        metrics.SESSIONS.set_function(lambda: self.sessions)

    @property
    def sessions(self) -> int:
        """Sessions drafted for now, over all verifiers."""
        return sum(len(link.rounds) for link, _ in self._links.values())

    @property
    def verifiers(self) -> list[str]:
        """Addresses with a live stream."""
        return [address for address, (link, _) in self._links.items() if link.live]

    def vocab_size(self, address: str) -> int | None:
        """Vocabulary size of the verifier's model, once it has said so."""
        known = self._links.get(address)
        return known[0].rounds.vocab_size if known else None

    async def attach(self, address: str, hypothesis: Hypothesis) -> None:
        """Draft for a session at a verifier; raises `Refused` when draining or full."""
        if self.draining:
            raise Refused(grpc.StatusCode.UNAVAILABLE, "the drafter is draining")
        session_id = hypothesis.key.session_id
        elsewhere = self._holder(session_id)
        if elsewhere is None and self.sessions >= self._settings.max_sessions:
            raise Refused(
                grpc.StatusCode.RESOURCE_EXHAUSTED, f"{self._settings.max_sessions} sessions are drafted for"
            )
        if elsewhere is not None and elsewhere.address != address:
            held = elsewhere.rounds.epoch(session_id)
            if held is not None and held > hypothesis.key.epoch:
                return
            await elsewhere.detach(session_id)
        await self._link(address).attach(hypothesis)

    async def detach(self, session_id: str) -> None:
        """Stop drafting for a session; unknown ones are fine."""
        holder = self._holder(session_id)
        if holder is not None:
            await holder.detach(session_id)

    async def sweep(self) -> None:
        """Until cancelled: drop sessions and links of which nothing was heard for long."""
        while True:
            await asyncio.sleep(_SWEEP_SECONDS)
            for link, task in list(self._links.values()):
                await link.drop_idle()
                if link.unused_seconds() > self._settings.idle_seconds:
                    task.cancel()

    async def drain(self, grace_seconds: float) -> None:
        """Take nothing new, and draft on until every session has ended or the grace is over."""
        self.draining = True
        await let_end(lambda: bool(self.sessions), grace_seconds)

    async def close(self) -> None:
        """Hang up everywhere."""
        tasks = [task for _, task in self._links.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _holder(self, session_id: str) -> VerifierLink | None:
        return next((link for link, _ in self._links.values() if session_id in link.rounds), None)

    def _link(self, address: str) -> VerifierLink:
        known = self._links.get(address)
        if known is not None and not known[1].done():
            return known[0]
        if len(self._links) >= self._settings.max_verifiers:
            raise Refused(
                grpc.StatusCode.RESOURCE_EXHAUSTED, f"{self._settings.max_verifiers} verifiers are connected"
            )
        link = VerifierLink(
            address, self._drafter_id, self._settings, self._identity, self._tenants_of, self.counters
        )
        task = asyncio.create_task(link.run(), name=f"draft stream to {address}")
        self._links[address] = link, task
        task.add_done_callback(lambda done: self._forget(address, done))
        return link

    def _forget(self, address: str, done: asyncio.Task[None]) -> None:
        known = self._links.get(address)
        if known is not None and known[1] is done:
            known[0].rounds.clear()
            del self._links[address]

    def _tenants_of(self, model_id: str, vocab_fingerprint: str, vocab_size: int) -> Tenants:
        key = model_id, vocab_fingerprint, vocab_size
        known = self._tenants.get(key)
        if known is None:
            known = self._tenants[key] = Tenants(self._first_method(*key), self._settings.tenants)
        return known

    def _first_method(self, model_id: str, vocab_fingerprint: str, vocab_size: int) -> Method:
        """As every tenant's begins."""
        method = methods.create(self._settings.method, vocab_size)
        folder = self._settings.tables or methods.tables.SHIPPED
        try:
            known = methods.tables.load(method, folder, vocab_fingerprint)
            log.info("drafting", model=model_id, method=method.name, tables=known)
        except methods.tables.TablesError as error:
            log.warning("starting without tables", model=model_id, reason=str(error))
        return method
