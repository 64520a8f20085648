"""Pods behind names that DNS knows, such as headless services: looked up again and again."""

from __future__ import annotations

import random
import socket
import threading
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from typing import Any

from gateway.discovery.base import Endpoint, Endpoints
from gateway.discovery.thread import told_by
from paceline.addresses import join_address, parse_address
from paceline.service import telemetry

log = telemetry.logger(__name__)

# What says that a name has no address, as opposed to that nobody could be asked.
_NOBODY = {socket.EAI_NONAME, getattr(socket, "EAI_NODATA", socket.EAI_NONAME)}
# So many answers in a row that nobody is there are believed: a DNS server that has just started may give one.
_BELIEVED = 3

# `socket.getaddrinfo`, or what stands in for it.
LookUp = Callable[..., Sequence[tuple[Any, ...]]]


class DnsDiscovery:
    """Every address of each name is a pod. While DNS fails, a name keeps the addresses that it had."""

    def __init__(
        self,
        verifiers: Iterable[str],
        drafters: Iterable[str],
        seconds: float,
        look_up: LookUp = socket.getaddrinfo,
    ) -> None:
        """Names as host:port, looked up every so many seconds."""
        self._verifiers = [_Name(name, look_up) for name in verifiers]
        self._drafters = [_Name(name, look_up) for name in drafters]
        self._seconds = seconds

    def endpoints(self) -> AsyncGenerator[Endpoints, None]:
        """See `Discovery`."""
        return told_by(self._search)

    def _search(self, tell: Callable[[Endpoints], None], stop: threading.Event) -> None:
        while True:
            for name in (*self._verifiers, *self._drafters):
                name.ask()
            tell(Endpoints(_pods(self._verifiers), _pods(self._drafters)))
            # Gateways that were started together do not ask together for ever.
            if stop.wait(self._seconds * random.uniform(0.9, 1.1)):
                return


class _Name:
    """One name, and the addresses that it had when DNS last answered."""

    def __init__(self, name: str, look_up: LookUp) -> None:
        self.addresses: set[str] = set()
        self._host, self._port = parse_address(name)
        self._look_up = look_up
        self._failing = False
        self._nobody = 0

    def ask(self) -> None:
        """Look it up. A failure is logged once."""
        try:
            found = self._look_up(self._host, self._port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            nobody = isinstance(error, socket.gaierror) and error.errno in _NOBODY
            self._nobody = self._nobody + 1 if nobody else 0
            if self._nobody >= _BELIEVED:
                self.addresses = set()
            elif not self._failing:
                log.warning("name is not found", name=self._host, why=str(error), kept=len(self.addresses))
            self._failing = True
            return
        if self._failing:
            log.info("name is found again", name=self._host)
        self._failing, self._nobody = False, 0
        # A pod with an address of each family would count twice: the family that this machine prefers.
        preferred = found[0][0] if found else None
        self.addresses = {
            join_address(where[0], self._port) for family, *_, where in found if family == preferred
        }


def _pods(names: Iterable[_Name]) -> tuple[Endpoint, ...]:
    """In one order, whatever the order of the answers."""
    return tuple(Endpoint(address) for address in sorted(set().union(*(name.addresses for name in names))))
