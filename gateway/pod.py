"""One verifier or drafter as this gateway knows it: its channel, its last status, the sessions there."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from typing import Any

import grpc

from paceline.net import rpc
from paceline.net.roles import Role
from paceline.net.tls import Identity
from paceline.service import telemetry
from paceline.v1 import verifier_pb2

log = telemetry.logger(__name__)

# How soon a pod is asked again that is fuller than was thought.
_SOONEST_SECONDS = 0.05


class Pod:
    """One address, its channel and its last status."""

    def __init__(
        self, address: str, role: Role, identity: Identity | None, *, use_http_proxy: bool = False
    ) -> None:
        self.address = address
        self._connection = rpc.Connection(address, role, identity, use_http_proxy=use_http_proxy)
        self.healthy = False
        # The fleet no longer has it: it gets no new session, and is let go when it has none of ours.
        self.removed = False
        # The last status it has told; None before the first.
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
        """End all calls and close the channel."""
        await self._connection.close()

    def remove(self) -> None:
        """Note that the fleet no longer has it."""
        self.removed = True
        self._look.set()

    @property
    def done_with(self) -> bool:
        """Whether it is removed and no session of ours is there."""
        return self.removed and not self.ours

    @property
    def sessions(self) -> int:
        """Sessions there, ours as of now."""
        return self._others + self.ours

    def begin(self) -> None:
        """A session of ours goes there."""
        self.ours += 1
        self._most_ours = max(self._most_ours, self.ours)

    def end(self) -> None:
        """A session of ours has left."""
        self.ours -= 1
        if self.done_with:
            self._look.set()

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
