"""One session's drafter: it is attached, watched and replaced. Its failures never reach the client."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress

import grpc
from opentelemetry.trace import Span

from gateway.fleet import Fleet
from gateway.generation import Generation
from gateway.pod import Pod
from gateway.routing.drafters import choose_drafter
from paceline.net import wire
from paceline.service import spans, telemetry
from paceline.session import MAX_PREDICTION_IDS, SessionKey
from paceline.v1 import drafter_pb2, drafter_pb2_grpc

log = telemetry.logger(__name__)

_CALL_SECONDS = 2.0
# A drafter that has had no stream to the session's verifier for the first time is replaced, and not tried
# again for the second.
_UNCONNECTED_SECONDS, _RETRY_SECONDS = 3.0, 10.0
# For this long after a replacement, the verifier's messages may still be about the drafter before.
_CROSSING_SECONDS = 2.0


class Speculation:
    """Keeps a drafter attached to a session while `run` runs."""

    def __init__(
        self,
        fleet: Fleet,
        key: SessionKey,
        wanted: Generation,
        tenant: str,
        verifier_address: str,
        known_ids: Callable[[], Sequence[int]],
        check_seconds: float,
        span: Span,
    ) -> None:
        """`span`: the session's, which hears of its drafters."""
        self._fleet = fleet
        self._key = key
        self._wanted = wanted
        self._tenant = tenant
        self._verifier_address = verifier_address
        self._known_ids = known_ids
        self._check_seconds = check_seconds
        self._span = span
        self._trace = tuple(spans.inject(span))
        self._attached: Pod | None = None
        self._attached_at = 0.0
        # When the attached drafter was last known to be connected to the verifier, or was attached.
        self._connected_at = 0.0
        self._replaces_one = False
        # Steps since it was attached, and what they accepted.
        self._steps = self._accepted = 0
        self._look = asyncio.Event()

    def put_aside(self, seconds: float) -> None:
        """Note that the verifier ignores the session's drafter for `seconds`."""
        crossing = self._replaces_one and time.monotonic() - self._attached_at < _CROSSING_SECONDS
        if self._attached is not None and not crossing:
            self._attached.put_aside(self._verifier_address, seconds)
            self._look.set()

    def stepped(self, accepted: int) -> None:
        """Note a step of the session, which accepted so many drafted tokens."""
        self._steps += 1
        self._accepted += accepted

    async def run(self) -> None:
        """Attach a drafter, and another one whenever it fails; detach when cancelled."""
        try:
            while True:
                if self._attached is None or not self._of_use(self._attached):
                    await self._attach()
                with suppress(TimeoutError):
                    async with asyncio.timeout(self._check_seconds):
                        await self._look.wait()
                self._look.clear()
        finally:
            if self._attached is not None:
                self._judge(self._attached)
                await asyncio.shield(self._detach(self._attached))

    def _judge(self, pod: Pod) -> None:
        """Note what the attached drafter has brought."""
        self._fleet.benefits.add(
            pod.address, self._verifier_address, steps=self._steps, accepted=self._accepted
        )

    def _of_use(self, pod: Pod) -> bool:
        now = time.monotonic()
        if self._verifier_address in pod.status.verifiers:
            self._connected_at = now
        # The status may be as old as the interval between two polls.
        if now - self._connected_at > max(_UNCONNECTED_SECONDS, 3 * self._check_seconds):
            pod.put_aside(self._verifier_address, _RETRY_SECONDS)
        if pod.draining and choose_drafter(self._fleet.drafter_views(), aside=self._aside()) is not None:
            return False
        return pod.healthy and not pod.removed and not pod.is_aside(self._verifier_address)

    def _aside(self) -> Collection[str]:
        """Addresses of drafters that the session's verifier ignores now."""
        return [
            address for address, pod in self._fleet.drafters.items() if pod.is_aside(self._verifier_address)
        ]

    async def _attach(self) -> None:
        gone, self._attached = self._attached, None
        if gone is not None:
            self._judge(gone)
            if gone.healthy:
                await self._detach(gone)
            else:
                gone.end()
        choice = choose_drafter(
            self._fleet.drafter_views(), avoid=() if gone is None else (gone.address,), aside=self._aside()
        )
        if choice is None:
            return
        chosen = choice.drafter
        log.debug("drafter chosen", session=self._key.session_id, drafter=chosen.address, why=choice.reason)
        told = {spans.DRAFTER: chosen.address, spans.REASON: str(choice.reason)}
        self._span.add_event("drafter chosen", told)
        pod = self._fleet.drafters[chosen.address]
        request = drafter_pb2.AttachRequest(
            key=wire.key_to_proto(self._key),
            verifier_address=self._verifier_address,
            known_ids=self._known_ids(),
            sampling=wire.sampling_to_proto(self._wanted.sampling),
            tenant=self._tenant,
            prediction_ids=self._wanted.prediction_ids[:MAX_PREDICTION_IDS],
            prompt_length=self._wanted.prompt_tokens,
        )
        # Set before the call: if it is cancelled, the drafter may have the session already.
        self._attached = pod
        self._attached_at = self._connected_at = time.monotonic()
        self._steps = self._accepted = 0
        self._replaces_one = gone is not None
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

    async def _detach(self, pod: Pod) -> None:
        request = drafter_pb2.DetachRequest(session_id=self._key.session_id)
        try:
            await drafter_pb2_grpc.DrafterServiceStub(pod.channel).Detach(request, timeout=_CALL_SECONDS)
        except grpc.aio.AioRpcError as error:
            log.debug("detach failed", drafter=pod.address, code=error.code().name)
        finally:
            # After the call: the channel of a removed pod is closed when its last session ends.
            pod.end()
