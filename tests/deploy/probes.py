"""Probes of rendered containers, asked as the kubelet does."""

from __future__ import annotations

import asyncio

from paceline.addresses import join_address
from paceline.net.readiness import grpc_serving, http_ok
from tests.deploy.rendering import Object


async def passes(probe: Object, host: str) -> bool:
    """Whether a probe of a container at that address passes now."""
    if "grpc" in probe:
        return await grpc_serving(join_address(host, probe["grpc"]["port"]))
    if "tcpSocket" in probe:
        try:
            _, writer = await asyncio.open_connection(host, probe["tcpSocket"]["port"])
        except OSError:
            return False
        writer.close()
        return True
    page = probe["httpGet"]
    where = join_address(host, page["port"])
    return await http_ok(f"{page['scheme'].lower()}://{where}{page['path']}")
