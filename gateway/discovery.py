"""Where the fleet's addresses come from."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Addresses:
    """The pods of a fleet at some time, each as host:port. Order means nothing."""

    verifiers: tuple[str, ...] = ()
    drafters: tuple[str, ...] = ()


class Discovery(Protocol):
    """Knows which pods there are."""

    def addresses(self) -> AsyncIterator[Addresses]:
        """The addresses now, and all of them again after each change. Ends where they never change again.

        While they cannot be found out nothing comes, and the last ones stay. Never raises.
        """
        ...


class StaticDiscovery:
    """Addresses that are given once."""

    def __init__(self, addresses: Addresses) -> None:
        self._addresses = addresses

    async def addresses(self) -> AsyncIterator[Addresses]:
        yield self._addresses
