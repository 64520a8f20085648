"""A network of podman's, in which each container has an address of its own, as pods of a cluster have."""

from __future__ import annotations

import json
from ipaddress import ip_network

from tests.images.engine import Engine


class Network:
    """Use `remove` at the end, once no container is in it."""

    def __init__(self, engine: Engine, name: str) -> None:
        """Make it anew. Raises `EngineError`, also where this user may make none."""
        self.name = name
        self._engine = engine
        self.remove()
        engine.call("network", "create", name)
        (subnet,) = json.loads(engine.call("network", "inspect", name))[0]["subnets"]
        # This machine's own address in it. It is there once a container is.
        self.host: str = subnet["gateway"]
        self._free = (each for each in map(str, ip_network(subnet["subnet"]).hosts()) if each != self.host)

    def address(self) -> str:
        """One that no container has had."""
        return next(self._free)

    def remove(self) -> None:
        """Remove it, with the containers of a check that was killed."""
        self._engine.try_("network", "rm", "--force", "--time", "0", self.name)
