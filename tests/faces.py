"""A gateway's two faces before its sessions, in a test's own process."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from gateway.core import Gateway
from gateway.grpc.key_check import KeyCheck
from gateway.grpc.servicer import GatewayServicer
from gateway.http.app import build_app
from gateway.http.server import HttpServer
from gateway.kept import MemoryKept
from gateway.prompt import Prompts
from gateway.sessions import Sessions
from paceline.net import rpc
from paceline.v1 import gateway_pb2_grpc
from tests.scripted_verifier import MODEL


@dataclass(frozen=True)
class Faces:
    """Where a gateway answers."""

    http: str
    grpc: str


@asynccontextmanager
async def faces(sessions: Sessions, prompts: Prompts) -> AsyncIterator[Faces]:
    gateway = Gateway(
        prompts,
        sessions,
        None,
        MemoryKept(ttl_seconds=600),
        model_name=MODEL,
        max_body_bytes=4 << 20,
        request_seconds=0,
        client_stall_seconds=60,
    )
    server = await rpc.start_server(
        lambda started: gateway_pb2_grpc.add_GatewayServiceServicer_to_server(
            GatewayServicer(gateway), started
        ),
        services=["paceline.v1.GatewayService"],
        host="127.0.0.1",
        port=0,
        interceptors=[KeyCheck(gateway.keys)],
    )
    listener = socket.create_server(("127.0.0.1", 0))
    http_server = HttpServer(build_app(gateway), None, keep_alive_seconds=90, grace_seconds=1)
    answering = asyncio.create_task(http_server.serve(sockets=[listener]))
    try:
        yield Faces(f"http://127.0.0.1:{listener.getsockname()[1]}", server.address)
    finally:
        http_server.should_exit = True
        await answering
        await server.stop(0)
