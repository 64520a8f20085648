"""The live verifiers and drafters: asks each for its status, and forgets the silent."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import grpc

from gateway.router import DrafterView, VerifierView
from paceline.net import rpc
from paceline.net.handshake import Served
from paceline.net.roles import Role
from paceline.net.tls import Identity
from paceline.service import telemetry
from paceline.v1 import (
    drafter_pb2,
    drafter_pb2_grpc,
    gateway_pb2,
    verifier_pb2,
    verifier_pb2_grpc,
)

log = telemetry.logger(__name__)

# A pod that has not answered for this many polls is not healthy.
_MISSED_POLLS = 3
# How soon a pod is asked again that is fuller than was thought.
_SOONEST_SECONDS = 0.05


class Pod:
    """One address, its channel and what it last said."""

    def __init__(
        self, address: str, role: Role, identity: Identity | None, *, use_http_proxy: bool = False
    ) -> None:
        self.address = address
        self._connection = rpc.Connection(address, role, identity, use_http_proxy=use_http_proxy)
        self.healthy = False
        self.status: Any = None
        # Why it may get no session of this gateway; empty when it may, and for drafters.
        self.misfit = ""
        # Sessions of this gateway that are there or on their way, and the most since a status was asked for.
        self.ours = 0
        self._most_ours = 0
        # Sessions of other gateways, as far as is known.
        self._others = 0
        self._heard = 0.0
        self._look = asyncio.Event()
        # Of a drafter: until when verifiers do not listen to it.
        self._aside: dict[str, float] = {}

    @property
    def channel(self) -> grpc.aio.Channel:
        """The channel for a call that begins now."""
        return self._connection.channel

    async def close(self) -> None:
        """Hang up."""
        await self._connection.close()

    @property
    def sessions(self) -> int:
        """Sessions there, ours as of now."""
        return self._others + self.ours

    def begin(self) -> None:
        """A session of ours goes there."""
        self.ours += 1
        self._most_ours = max(self._most_ours, self.ours)

    def end(self) -> None:
        """It has left."""
        self.ours -= 1

    def full(self) -> None:
        """It had no place for a session of ours, which has left: others have those that we do not."""
        self._others = max(self._others, self.status.max_sessions - self.ours)
        self._look.set()

    def put_aside(self, verifier: str, seconds: float) -> None:
        """A drafter is of no use at that verifier for so long."""
        self._aside[verifier] = time.monotonic() + seconds

    def is_aside(self, verifier: str) -> bool:
        """Whether a drafter is of no use at that verifier now."""
        return time.monotonic() < self._aside.get(verifier, 0.0)

    def asking(self) -> None:
        """It is asked for its status now."""
        self._most_ours = self.ours

    def heard(self, status: Any) -> None:
        """Take a fresh status in. It tells all sessions at some moment since it was asked for."""
        self.status = status
        self._others = max(0, status.sessions - self._most_ours)
        self._heard = time.monotonic()
        if isinstance(status, verifier_pb2.VerifierStatusResponse) and status.stalled:
            self.lost("its engine hangs")
            return
        if not self.healthy:
            log.info("pod is up", address=self.address)
        self.healthy = True

    async def due(self, seconds: float) -> None:
        """Return when its status is to be asked for again."""
        await asyncio.sleep(min(seconds, _SOONEST_SECONDS))
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds - _SOONEST_SECONDS):
                await self._look.wait()
        self._look.clear()

    def missed(self, patience: float) -> None:
        """No answer; unhealthy once that has lasted `patience` seconds."""
        if self.healthy and time.monotonic() - self._heard > patience:
            self.lost("no status")

    def lost(self, why: str) -> None:
        """Known to be gone until it answers again."""
        if self.healthy:
            log.warning("pod is down", address=self.address, why=why)
        self.healthy = False


class Fleet:
    """All pods this gateway was told of, polled in the background."""

    def __init__(
        self,
        verifiers: Sequence[str],
        drafters: Sequence[str],
        poll_seconds: float,
        identity: Identity | None = None,
        *,
        served: Served | None = None,
        use_http_proxy: bool = False,
    ) -> None:
        """`identity`: what this gateway shows the pods; None speaks plaintext.

        `served`: what the verifiers must serve to get sessions; None takes any.
        """
        self._served = served

        def pods(addresses: Sequence[str], role: Role) -> dict[str, Pod]:
            return {each: Pod(each, role, identity, use_http_proxy=use_http_proxy) for each in addresses}

        self.verifiers = pods(verifiers, Role.VERIFIER)
        self.drafters = pods(drafters, Role.DRAFTER)
        # Of sessions under which verifiers have died: see `suspicion`.
        self.turns = asyncio.Lock()
        self._poll_seconds = poll_seconds
        self._identity = identity
        self._tasks: list[asyncio.Task[None]] = []
        self._changed: Callable[[], None] = lambda: None

    def on_change(self, changed: Callable[[], None]) -> None:
        """Have `changed` called whenever a pod has been heard of."""
        self._changed = changed

    def start(self) -> None:
        """Poll until `close`."""
        stub: Any = verifier_pb2_grpc.VerifierServiceStub
        polls = [
            self._poll(pod, stub, verifier_pb2.VerifierStatusRequest()) for pod in self.verifiers.values()
        ]
        stub = drafter_pb2_grpc.DrafterServiceStub
        polls += [self._poll(pod, stub, drafter_pb2.DrafterStatusRequest()) for pod in self.drafters.values()]
        self._tasks += [asyncio.create_task(poll) for poll in polls]
        if self._identity is not None:
            self._tasks.append(asyncio.create_task(self._identity.keep_up()))

    async def close(self) -> None:
        """Stop polling and close all channels."""
        for task in self._tasks:
            task.cancel()
        for pod in (*self.verifiers.values(), *self.drafters.values()):
            await pod.close()

    async def _poll(self, pod: Pod, stub: Any, request: Any) -> None:
        while True:
            pod.asking()
            try:
                status = await stub(pod.channel).Status(request, timeout=max(self._poll_seconds, 1.0))
                self._compare(pod, status)
                pod.heard(status)
            except grpc.aio.AioRpcError:
                pod.missed(_MISSED_POLLS * self._poll_seconds)
            self._changed()
            await pod.due(self._poll_seconds)

    def _compare(self, pod: Pod, status: Any) -> None:
        if self._served is None or not isinstance(status, verifier_pb2.VerifierStatusResponse):
            return
        misfit = self._served.misfit(Served(status.model_id, status.vocab_fingerprint))
        if misfit and misfit != pod.misfit:
            log.error("verifier gets no sessions", address=pod.address, why=misfit)
        pod.misfit = misfit

    def not_ready(self) -> str:
        """Why no verifier can take a session; empty when one can. Names no address."""
        able = [pod for pod in self.verifier_views() if pod.healthy and not pod.draining]
        if not able:
            return "no verifier is up"
        misfits = [pod.misfit for pod in able]
        return "" if "" in misfits else misfits[0]

    def verifier_views(self) -> list[VerifierView]:
        """What routing may know of the verifiers that have ever answered."""
        return [
            VerifierView(
                address=pod.address,
                healthy=pod.healthy,
                draining=pod.status.draining,
                model_id=pod.status.model_id,
                vocab_size=pod.status.vocab_size,
                max_context=pod.status.max_context,
                sessions=pod.sessions,
                max_sessions=pod.status.max_sessions,
                misfit=pod.misfit,
            )
            for pod in self.verifiers.values()
            if pod.status is not None
        ]

    def drafter_views(self) -> list[DrafterView]:
        """What routing may know of the drafters that have ever answered."""
        return [
            DrafterView(
                address=pod.address,
                healthy=pod.healthy,
                draining=pod.status.draining,
                sessions=pod.sessions,
                max_sessions=pod.status.max_sessions,
            )
            for pod in self.drafters.values()
            if pod.status is not None
        ]

    def to_proto(self, sessions: int) -> gateway_pb2.FleetResponse:
        """The fleet for people."""
        return gateway_pb2.FleetResponse(
            verifiers=[
                gateway_pb2.VerifierPod(
                    address=pod.address, healthy=pod.healthy, status=pod.status, misfit=pod.misfit
                )
                for pod in self.verifiers.values()
            ],
            drafters=[
                gateway_pb2.DrafterPod(address=pod.address, healthy=pod.healthy, status=pod.status)
                for pod in self.drafters.values()
            ],
            sessions=sessions,
        )
