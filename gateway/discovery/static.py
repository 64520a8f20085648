"""Pods that are given once."""

from __future__ import annotations

from collections.abc import AsyncGenerator

from gateway.discovery.base import Endpoints


class StaticDiscovery:
    """Finds the same pods for ever."""

    def __init__(self, endpoints: Endpoints) -> None:
        self._endpoints = endpoints

    async def endpoints(self) -> AsyncGenerator[Endpoints, None]:
        yield self._endpoints
