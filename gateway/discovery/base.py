"""What every kind of discovery yields: the pods of a fleet, and where each is reached."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable
from dataclasses import dataclass
from typing import Protocol, Self


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where one pod is reached, and what discovery knows of it."""

    # host:port
    address: str
    # The pool that it was found in; empty if discovery knows of none.
    pool: str = ""
    # Name of its Kubernetes pod; empty outside Kubernetes.
    pod: str = ""
    # Whether it is being stopped: it gets no new session, and its sessions move.
    going: bool = False


@dataclass(frozen=True, slots=True)
class Endpoints:
    """The pods of a fleet at some time. Order means nothing."""

    verifiers: tuple[Endpoint, ...] = ()
    drafters: tuple[Endpoint, ...] = ()

    @classmethod
    def at(cls, verifiers: Iterable[str] = (), drafters: Iterable[str] = ()) -> Self:
        """Pods of which the address is all that is known."""
        return cls(tuple(map(Endpoint, verifiers)), tuple(map(Endpoint, drafters)))


class Discovery(Protocol):
    """Knows which pods there are."""

    def endpoints(self) -> AsyncGenerator[Endpoints, None]:
        """The pods now, and all of them again after each change. Ends where they never change again.

        While they cannot be found out nothing comes, and the last ones stay. Never raises.
        """
        ...
