"""One verifier or drafter as this gateway knows it: its channel, its last status, the sessions there."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from typing import Any

import grpc

from gateway.discovery import Endpoint
from gateway.routing.backlog import Backlog
from gateway.routing.texts import HeldTexts, RoutedText
from paceline.net import rpc
from paceline.net.roles import Role
from paceline.net.tls import Identity
from paceline.service import telemetry
from paceline.v1 import verifier_pb2

log = telemetry.logger(__name__)

# Shortest time between two polls of a pod.
_SOONEST_SECONDS = 0.05


class Pod:
    """One address, its channel and its last status."""

    def __init__(
        self, endpoint: Endpoint, role: Role, identity: Identity | None, *, use_http_proxy: bool = False
    ) -> None:
        # What discovery said last of it. Its address and its pod's name stay.
        self.endpoint = endpoint
        self._connection = rpc.Connection(endpoint.address, role, identity, use_http_proxy=use_http_proxy)
        self.healthy = False
        # Whether it has left the fleet: it gets no new session, and is closed when none of ours is left.
        self.removed = False
        # Its last status; None before the first.
        self.status: Any = None
        # Why it gets no session of this gateway; empty if it may get some, and for drafters.
        self.misfit = ""
        # Sessions of this gateway there or on their way, and the most of them since the last poll began.
        self.ours = 0
        self._most_ours = 0
        # Sessions of other gateways, by the last status.
        self._others = 0
        self._heard = 0.0
        self._look = asyncio.Event()
        # Verifiers only: what they have to compute, and what they hold, for routing.
        self.backlog = Backlog()
        self.texts = HeldTexts()
        # Drafters only: until when each verifier ignores it, by address, on the monotonic clock.
        self._aside: dict[str, float] = {}

    @property
    def address(self) -> str:
        """Where it is reached, as host:port."""
        return self.endpoint.address

    @property
    def draining(self) -> bool:
        """Whether it takes no new sessions as it is being stopped: it says so, or discovery does."""
        return self.endpoint.going or (self.status is not None and self.status.draining)

    def found(self, endpoint: Endpoint) -> None:
        """Take what discovery says of it now."""
        self.endpoint = endpoint

    @property
    def channel(self) -> grpc.aio.Channel:
        """The channel for a new call."""
        return self._connection.channel

    async def close(self) -> None:
        """End all calls and close the channel."""
        await self._connection.close()

    def remove(self) -> None:
        """Note that it has left the fleet."""
        self.removed = True
        self._look.set()

    @property
    def done_with(self) -> bool:
        """Whether it has left the fleet and none of our sessions is there."""
        return self.removed and not self.ours

    @property
    def sessions(self) -> int:
        """Sessions there: ours now, and others by the last status."""
        return self._others + self.ours

    def begin(self) -> None:
        """Count a session of ours that goes there."""
        self.ours += 1
        self._most_ours = max(self._most_ours, self.ours)

    def send(self, text: RoutedText) -> None:
        """Note that a session of ours with this text goes there; after `begin`."""
        self.backlog.send(text.tokens - self.texts.held_tokens(text))
        self.texts.send(text)

    def end(self) -> None:
        """Count a session of ours that has left."""
        self.ours -= 1
        if self.done_with:
            self._look.set()

    def full(self) -> None:
        """Note that it refused a session as full: other gateways have the places that we do not."""
        self._others = max(self._others, self.status.max_sessions - self.ours)
        self._look.set()

    def put_aside(self, verifier: str, seconds: float) -> None:
        """Note that a verifier ignores this drafter for `seconds`."""
        self._aside[verifier] = time.monotonic() + seconds

    def is_aside(self, verifier: str) -> bool:
        """Whether a verifier ignores this drafter now."""
        return time.monotonic() < self._aside.get(verifier, 0.0)

    def asking(self) -> None:
        """Note that a poll begins."""
        self._most_ours = self.ours
        self.backlog.asking()

    def heard(self, status: Any) -> None:
        """Take a new status. Its session count is of some moment between the poll's begin and now."""
        self.status = status
        self._others = max(0, status.sessions - self._most_ours)
        self._heard = time.monotonic()
        if isinstance(status, verifier_pb2.VerifierStatusResponse):
            self.backlog.heard(status.waiting_tokens, status.prompt_token_seconds)
            if status.stalled:
                self.lost("its engine hangs")
                return
        if not self.healthy:
            log.info("pod is up", address=self.address)
        self.healthy = True

    async def due(self, seconds: float) -> None:
        """Return when the next poll is due: in `seconds`, or earlier if something calls for it."""
        await asyncio.sleep(min(seconds, _SOONEST_SECONDS))
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds - _SOONEST_SECONDS):
                await self._look.wait()
        self._look.clear()

    def missed(self, patience: float) -> None:
        """Note a poll without an answer; unhealthy after `patience` seconds without one."""
        if self.healthy and time.monotonic() - self._heard > patience:
            self.lost("no status")

    def lost(self, why: str) -> None:
        """Note that it is unhealthy until it answers again."""
        if self.healthy:
            log.warning("pod is down", address=self.address, why=why)
        self.healthy = False
