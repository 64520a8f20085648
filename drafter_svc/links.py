"""The links to verifiers: one is opened for a verifier's first session, and dropped after long disuse."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import grpc

from drafter_svc import metrics
from drafter_svc.config import DrafterSettings
from drafter_svc.draft_trace import DraftTrace
from drafter_svc.hello import hello
from drafter_svc.hypothesis import Hypothesis
from drafter_svc.load import Load
from drafter_svc.methods.base import MethodFactory, Target
from drafter_svc.rounds import Counters
from drafter_svc.runner import Runner
from drafter_svc.stream import VerifierLink
from drafter_svc.thread_runner import ThreadRunner
from paceline.net.rpc import RefusedError
from paceline.net.tls import Identity
from paceline.service import telemetry
from paceline.service.tasks import let_end

log = telemetry.logger(__name__)

_SWEEP_SECONDS = 5.0


def methods_thread() -> ThreadPoolExecutor:
    """The one thread of all methods that compute: they would only take turns at the same processor."""
    return ThreadPoolExecutor(1, "drafting methods")


class Links:
    """Owns one task per verifier, and the methods of each target, which serve all its verifiers' sessions."""

    def __init__(
        self,
        drafter_id: str,
        settings: DrafterSettings,
        identity: Identity | None,
        factories: Sequence[MethodFactory],
        thread: ThreadPoolExecutor,
    ) -> None:
        """`factories` are of the sources, by their numbers; at least one. `thread` ends with the links."""
        self.counters = Counters()
        self.load = Load()
        self.draining = False
        self._settings = settings
        self._identity = identity
        self._factories = tuple(factories)
        self._hello = hello(drafter_id, factories)
        self._thread = thread
        self._links: dict[str, tuple[VerifierLink, asyncio.Task[None]]] = {}
        self._runners: dict[Target, asyncio.Task[tuple[Runner, ...]]] = {}
        metrics.SESSIONS.set_function(lambda: self.sessions)
        metrics.BUSY_SECONDS.read = lambda: self.load.busy_seconds

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

    async def attach(self, address: str, hypothesis: Hypothesis, trace: DraftTrace | None = None) -> None:
        """Draft for a session at a verifier. Raises `RefusedError` when draining or full."""
        if self.draining:
            raise RefusedError(grpc.StatusCode.UNAVAILABLE, "the drafter is draining")
        session_id = hypothesis.key.session_id
        elsewhere = self._holder(session_id)
        if elsewhere is None and self.sessions >= self._settings.max_sessions:
            raise RefusedError(
                grpc.StatusCode.RESOURCE_EXHAUSTED, f"{self._settings.max_sessions} sessions are drafted for"
            )
        if elsewhere is not None and elsewhere.address != address:
            held = elsewhere.rounds.epoch(session_id)
            if held is not None and held > hypothesis.key.epoch:
                if trace is not None:
                    trace.end()
                return
            await elsewhere.detach(session_id)
        await self._link(address).attach(hypothesis, trace)

    async def detach(self, session_id: str) -> None:
        """Stop drafting for a session. Unknown ones are fine."""
        holder = self._holder(session_id)
        if holder is not None:
            await holder.detach(session_id)

    async def sweep(self) -> None:
        """Drop sessions without verdicts and links without sessions, until cancelled."""
        while True:
            await asyncio.sleep(_SWEEP_SECONDS)
            for link, task in list(self._links.values()):
                await link.drop_idle()
                if link.unused_seconds() > self._settings.idle_seconds:
                    task.cancel()

    async def drain(self, grace_seconds: float) -> None:
        """Refuse new sessions; go on drafting until every session has ended or the grace period is over."""
        self.draining = True
        await let_end(lambda: bool(self.sessions), grace_seconds)

    async def close(self) -> None:
        """End every stream."""
        tasks = [task for _, task in self._links.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for made in self._runners.values():
            made.cancel()
            if made.done() and not made.cancelled() and made.exception() is None:
                for runner in made.result():
                    runner.close()
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _holder(self, session_id: str) -> VerifierLink | None:
        return next((link for link, _ in self._links.values() if session_id in link.rounds), None)

    def _link(self, address: str) -> VerifierLink:
        known = self._links.get(address)
        if known is not None and not known[1].done():
            return known[0]
        if len(self._links) >= self._settings.max_verifiers:
            raise RefusedError(
                grpc.StatusCode.RESOURCE_EXHAUSTED, f"{self._settings.max_verifiers} verifiers are connected"
            )
        link = VerifierLink(
            address,
            self._settings,
            self._identity,
            self._hello,
            not self._factories[0].computes,
            self._runners_for,
            self.counters,
            self.load,
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

    async def _runners_for(self, target: Target) -> tuple[Runner, ...]:
        made = self._runners.get(target)
        if made is None:
            made = self._runners[target] = asyncio.create_task(self._make(target), name="make methods")
        try:
            return await asyncio.shield(made)
        except Exception:
            # Several verifiers may have waited for it, and one of them may have begun anew.
            if self._runners.get(target) is made:
                del self._runners[target]
            raise

    async def _make(self, target: Target) -> tuple[Runner, ...]:
        """The runners of a target. Tables of the text are read beside the event loop, too."""
        runners: list[Runner] = []
        for factory in self._factories:
            if factory.computes:
                runners.append(ThreadRunner(factory, target, self._thread, self.load))
            else:
                method = await asyncio.to_thread(factory.create, target)
                runners.append(Runner(method, self.load, factory.name))
        return tuple(runners)
