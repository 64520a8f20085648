"""A drafter's parts put together: it makes the method, serves gRPC and drains on SIGTERM."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass

import grpc

from drafter_svc.config import DrafterSettings
from drafter_svc.factory import factories, load
from drafter_svc.links import Links, methods_thread
from drafter_svc.methods import UnknownMethodError
from drafter_svc.methods.base import MethodFactory, UnfitError
from drafter_svc.server import DrafterServicer
from paceline.net import rpc
from paceline.net.roles import Role
from paceline.net.tls import Identity
from paceline.service import metrics, telemetry
from paceline.service.settings import SettingsError
from paceline.v1 import drafter_pb2_grpc

SERVICE = "paceline.v1.DrafterService"
log = telemetry.logger(__name__)
# How long a thread may keep the interpreter while another wants it.
_SWITCH_SECONDS = 5e-4


@dataclass(frozen=True, slots=True)
class Drafter:
    """A running drafter: its gRPC address and its links to verifiers."""

    address: str
    links: Links

    @classmethod
    @asynccontextmanager
    async def running(
        cls,
        settings: DrafterSettings,
        factories: Sequence[MethodFactory],
        thread: ThreadPoolExecutor | None = None,
    ) -> AsyncIterator[Drafter]:
        """Serve until the block is left, then drain within the grace period.

        `thread`: where methods that compute have been loaded; None makes one.
        """
        drafter_id = settings.drafter_id or f"{socket.gethostname()}-{os.getpid()}"
        identity = Identity.of_service(settings, Role.DRAFTER)
        links = Links(drafter_id, settings, identity, factories, thread or methods_thread())
        servicer = DrafterServicer(drafter_id, settings, links)

        def add(server: grpc.aio.Server) -> None:
            drafter_pb2_grpc.add_DrafterServiceServicer_to_server(servicer, server)

        server = await rpc.start_server(
            add, services=[SERVICE], host=settings.host, port=settings.port, identity=identity
        )
        sweep = asyncio.create_task(links.sweep(), name="drop idle sessions and links")
        log.info("ready", address=server.address, drafter=drafter_id, method=settings.method)
        try:
            yield cls(server.address, links)
        finally:
            await links.drain(settings.grace_seconds)
            sweep.cancel()
            await links.close()
            await server.stop(0)


async def serve(
    settings: DrafterSettings,
    factories: Sequence[MethodFactory],
    stop: asyncio.Event,
    thread: ThreadPoolExecutor | None = None,
) -> None:
    """Serve until `stop` is set."""
    async with Drafter.running(settings, factories, thread):
        await stop.wait()


def run(settings: DrafterSettings) -> None:
    """Make and load the drafting methods, and serve. Raises `SettingsError` for one that cannot be used."""
    metrics.label(pool=settings.pool)
    telemetry.setup("drafter", settings)
    try:
        made = factories(settings)
    except (UnknownMethodError, UnfitError) as error:
        raise SettingsError(f"--method (PACELINE_DRAFTER_METHOD): {error}") from error
    if any(factory.computes for factory in made):
        # By itself a thread that runs Python lets the event loop wait five milliseconds.
        sys.setswitchinterval(_SWITCH_SECONDS)
    # Before minutes are spent on loading.
    rpc.check_free(settings.host, settings.port)
    thread = methods_thread()
    # Before the event loop runs: a signal ends the process at once.
    thread.submit(load, made).result()
    rpc.run_service(lambda stop: serve(settings, made, stop, thread))
