"""One session's drafter: attached, watched, replaced. Its trouble never reaches the client."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Sequence

import grpc

from gateway.fleet import Fleet
from gateway.router import choose_drafter
from paceline import telemetry, wire
from paceline.session import SamplingParams, SessionKey
from paceline.v1 import drafter_pb2, drafter_pb2_grpc

log = telemetry.logger(__name__)

_CALL_SECONDS = 2.0


class Speculation:
    """Keeps a drafter attached to a session while `run` runs."""

    def __init__(
        self,
        fleet: Fleet,
        key: SessionKey,
        sampling: SamplingParams,
        tenant: str,
        verifier_address: str,
        known_ids: Callable[[], Sequence[int]],
        check_seconds: float,
        trace: Sequence[tuple[str, str]],
    ) -> None:
        self._fleet = fleet
        self._key = key
        self._sampling = sampling
        self._tenant = tenant
        self._verifier_address = verifier_address
        self._known_ids = known_ids
        self._check_seconds = check_seconds
        self._trace = tuple(trace)
        self._attached: str | None = None

    async def run(self) -> None:
        """Attach, and attach anew whenever the drafter has gone; detach when cancelled."""
        try:
            while True:
                if self._attached is None or not self._of_use(self._attached):
                    await self._attach()
                await asyncio.sleep(self._check_seconds)
        finally:
            if self._attached is not None:
                self._fleet.drafters[self._attached].end()
                await asyncio.shield(self._detach(self._attached))

    def _of_use(self, address: str) -> bool:
        pod = self._fleet.drafters[address]
        return pod.healthy and pod.status.drafter_id not in self._aside()

    def _aside(self) -> Collection[str]:
        """Ids of drafters that the session's verifier does not listen to now."""
        aside: Collection[str] = self._fleet.verifiers[self._verifier_address].status.drafters_aside
        return aside

    async def _attach(self) -> None:
        gone, self._attached = self._attached, None
        if gone is not None:
            self._fleet.drafters[gone].end()
            if self._fleet.drafters[gone].healthy:
                await self._detach(gone)
        chosen = choose_drafter(
            self._fleet.drafter_views(), avoid=() if gone is None else (gone,), aside=self._aside()
        )
        if chosen is None:
            return
        pod = self._fleet.drafters[chosen.address]
        request = drafter_pb2.AttachRequest(
            key=wire.key_to_proto(self._key),
            verifier_address=self._verifier_address,
            known_ids=self._known_ids(),
            sampling=wire.sampling_to_proto(self._sampling),
            tenant=self._tenant,
        )
        # Before it is: cancelled meanwhile, the drafter may hold the session already.
        self._attached = chosen.address
        pod.begin()
        try:
            await drafter_pb2_grpc.DrafterServiceStub(pod.channel).Attach(
                request, timeout=_CALL_SECONDS, metadata=self._trace
            )
        except grpc.aio.AioRpcError as error:
            log.warning(
                "no speculation yet", drafter=chosen.address, code=error.code().name, why=error.details()
            )
            if error.code() == grpc.StatusCode.UNAVAILABLE:
                pod.lost("attach failed")
            self._attached = None
            pod.end()
            if error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED:
                pod.full()

    async def _detach(self, address: str) -> None:
        stub = drafter_pb2_grpc.DrafterServiceStub(self._fleet.drafters[address].channel)
        try:
            await stub.Detach(
                drafter_pb2.DetachRequest(session_id=self._key.session_id), timeout=_CALL_SECONDS
            )
        except grpc.aio.AioRpcError as error:
            log.debug("detach failed", drafter=address, code=error.code().name)
