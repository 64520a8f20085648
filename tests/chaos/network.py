"""Cuts services off: by TCP proxies everywhere, or by dropped packets where root has a network of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping
from contextlib import AsyncExitStack
from functools import partial
from types import TracebackType
from typing import Protocol, Self

import psutil

from tests.chaos.faults import Kind
from tests.pods import Pod
from tests.proxy import Connection, Cut, Proxy

_CUTS = {Kind.STALL: Cut.STALL, Kind.RESET: Cut.RESET}
# Group ids of services, from here on: rules know a service's packets by them.
_FIRST_GROUP = 40_000


class Network(Protocol):
    """What stands between services; they are known by their pods' names."""

    cuts: tuple[Kind, ...]

    def group(self, name: str) -> int | None:
        """The group id that a service is to run in, if it matters."""

    async def join(self, services: Mapping[str, str]) -> dict[str, str]:
        """Take services in by their addresses; gives the addresses that others are to use.

        One that has several addresses joins again with each.
        """

    def cut(self, name: str, kind: Kind) -> None:
        """Let nothing come from or to a service."""

    def heal(self, name: str) -> None:
        """End that."""


class Proxies:
    """A proxy before every service. Use as an asynchronous context manager."""

    cuts: tuple[Kind, ...] = (Kind.STALL, Kind.RESET)

    def __init__(self, pods: Mapping[str, Pod]) -> None:
        """`pods`: by name; a connection is of the service that it goes to and of that which opened it."""
        self._pods = pods
        # Each with the name of the service that it stands before.
        self._proxies: list[tuple[str, Proxy]] = []
        self._cut: dict[str, Cut] = {}
        self._open = AsyncExitStack()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._open.aclose()

    def group(self, name: str) -> int | None:
        """See `Network.group`."""
        return None

    async def join(self, services: Mapping[str, str]) -> dict[str, str]:
        """See `Network.join`."""
        told = {}
        for name, address in services.items():
            proxy = Proxy(address, partial(self._how, name))
            await self._open.enter_async_context(proxy)
            self._proxies.append((name, proxy))
            told[name] = proxy.address
        return told

    def cut(self, name: str, kind: Kind) -> None:
        """See `Network.cut`."""
        self._cut[name] = _CUTS[kind]
        for connection in self._of(name):
            connection.cut(_CUTS[kind])

    def heal(self, name: str) -> None:
        """See `Network.heal`."""
        connections = self._of(name)
        del self._cut[name]
        for connection in connections:
            # The other end may still be cut off.
            connection.cut(
                next((how for other, how in self._cut.items() if connection in self._of(other)), None)
            )

    def _how(self, server: str, connection: Connection) -> Cut | None:
        for name, how in self._cut.items():
            if name == server or connection.client_port in self._ports(name):
                return how
        return None

    def _of(self, name: str) -> list[Connection]:
        ports = self._ports(name)
        return [
            connection
            for server, proxy in self._proxies
            for connection in proxy.connections()
            if server == name or connection.client_port in ports
        ]

    def _ports(self, name: str) -> set[int]:
        """Ports of a service's own end of its connections."""
        return _local_ports(self._pods[name])


class Packets:
    """Drops packets by nftables. For root in a network namespace of its own: see `unavailable`."""

    cuts: tuple[Kind, ...] = (Kind.DROP,)
    _TABLE = """
        table inet paceline_chaos {
            set ports { type inet_service; }
            set groups { typeof meta skgid; }
            chain output { type filter hook output priority 0;
                meta skgid @groups drop
                tcp sport @ports drop
                tcp dport @ports drop
            }
        }
    """

    def __init__(self, pods: Mapping[str, Pod]) -> None:
        """`pods`: by name."""
        self._pods = pods
        self._groups: dict[str, int] = {}
        self._cut: dict[str, set[int]] = {}

    async def __aenter__(self) -> Self:
        _nft(self._TABLE)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _nft("delete table inet paceline_chaos")

    @staticmethod
    def unavailable() -> str:
        """Why packets cannot be dropped here, or empty."""
        if os.geteuid() != 0:
            return "only root can drop packets"
        return "" if shutil.which("nft") else "there is no nft here (package nftables)"

    def group(self, name: str) -> int | None:
        """See `Network.group`."""
        return self._groups.setdefault(name, _FIRST_GROUP + len(self._groups))

    async def join(self, services: Mapping[str, str]) -> dict[str, str]:
        """See `Network.join`."""
        return dict(services)

    def cut(self, name: str, kind: Kind) -> None:
        """See `Network.cut`."""
        # Its connections both ways and those to its server; by its group the new ones that it opens.
        ports = self._cut[name] = _local_ports(self._pods[name])
        _nft(f"add element inet paceline_chaos ports {{ {', '.join(map(str, ports))} }}")
        _nft(f"add element inet paceline_chaos groups {{ {self._groups[name]} }}")

    def heal(self, name: str) -> None:
        """See `Network.heal`."""
        ports = self._cut.pop(name) - set().union(*self._cut.values())
        _nft(f"delete element inet paceline_chaos groups {{ {self._groups[name]} }}")
        _nft(f"delete element inet paceline_chaos ports {{ {', '.join(map(str, ports))} }}")


def _local_ports(pod: Pod) -> set[int]:
    if not pod.running:
        return set()
    return {each.laddr.port for each in psutil.Process(pod.pid).net_connections("tcp")}


def _nft(commands: str) -> None:
    subprocess.run(["nft", "-f", "-"], input=commands, text=True, check=True, timeout=10)
