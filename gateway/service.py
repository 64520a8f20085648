"""The gateway service: loads the tokenizer, serves HTTP and gRPC, drains on SIGTERM."""

from __future__ import annotations

import asyncio
import socket
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gateway import fleet_metrics
from gateway.admission import AdmissionControl
from gateway.config import GatewaySettings
from gateway.core import Gateway
from gateway.discovery.factory import cluster_of, discovery_of
from gateway.fleet import Fleet
from gateway.grpc.key_check import KeyCheck
from gateway.grpc.servicer import GatewayServicer
from gateway.http.app import build_app
from gateway.http.server import HttpServer
from gateway.kept import Kept, MemoryKept, RedisKept
from gateway.keys import ApiKeys, KeyFileError
from gateway.kubernetes.deletion_cost import DeletionCosts
from gateway.limits import FallbackLedger, Ledger, MemoryLedger, RedisLedger
from gateway.prompt import Prompts
from gateway.scaling.serving import recommending
from gateway.session import Policy
from gateway.sessions import Sessions
from paceline.addresses import join_address, listen, why_not
from paceline.models.store import NoSuchFolderError, check_model
from paceline.net.handshake import Served
from paceline.net.roles import Role
from paceline.net.rpc import run_service, start_server
from paceline.net.tls import Identity
from paceline.service import metrics, telemetry
from paceline.service.settings import SettingsError
from paceline.store import MemoryStore, RedisStore, SessionStore
from paceline.v1 import gateway_pb2_grpc

if TYPE_CHECKING:
    from gateway.kubernetes.cluster import Cluster

log = telemetry.logger(__name__)


@dataclass(frozen=True, slots=True)
class Parts:
    """The parts of a gateway behind its faces."""

    gateway: Gateway
    fleet: Fleet
    admission: AdmissionControl
    ledger: Ledger
    store: SessionStore
    # What it shows the other services; None without TLS.
    identity: Identity | None

    async def close(self) -> None:
        """Close all connections."""
        await self.fleet.close()
        await self.ledger.close()
        await self.store.close()
        await self.gateway.kept.close()


def assemble(settings: GatewaySettings, prompts: Prompts, keys: ApiKeys | None) -> Parts:
    """Make the parts by the settings; nothing runs yet."""
    if keys is None:
        log.warning("no api_keys_file: everybody is served")
    store, ledger = _store(settings), _ledger(settings)
    admission = AdmissionControl(ledger, settings.limits, queue_seconds=settings.queue_seconds)
    model_name = settings.served_model_name
    identity = Identity.of_service(settings, Role.GATEWAY)
    fleet = Fleet(
        settings.poll_seconds,
        identity,
        served=Served(model_name, prompts.vocab_fingerprint),
        use_http_proxy=settings.use_http_proxy,
    )
    sessions = Sessions(
        fleet,
        store,
        Policy(settings.strict, settings.verifier_silence_seconds, settings.poll_seconds),
        admission,
        model_id=model_name,
        max_sessions=settings.max_sessions,
        max_waiting=settings.max_waiting,
    )
    gateway = Gateway(
        prompts,
        sessions,
        keys,
        _kept(settings),
        model_name=model_name,
        max_body_bytes=settings.max_body_bytes,
        request_seconds=settings.request_seconds,
        client_stall_seconds=settings.client_stall_seconds,
        cors_origins=settings.cors_allowed,
        ignores_unknown_fields=settings.unknown_fields == "ignore",
    )
    return Parts(gateway, fleet, admission, ledger, store, identity)


async def serve(
    settings: GatewaySettings, prompts: Prompts, keys: ApiKeys | None, stop: asyncio.Event
) -> None:
    """Serve until `stop` is set, then let running streams end within the grace period."""
    cluster = cluster_of(settings)
    parts = assemble(settings, prompts, keys)
    gateway = parts.gateway
    identity = Identity.for_clients(settings.public_tls_cert, settings.public_tls_key)
    listeners = _listen(settings.host, settings.http_port, settings.client_stall_seconds)
    parts.fleet.start(discovery_of(settings, cluster))
    grpc_server = await start_server(
        lambda server: gateway_pb2_grpc.add_GatewayServiceServicer_to_server(
            GatewayServicer(gateway), server
        ),
        services=["paceline.v1.GatewayService"],
        host=settings.host,
        port=settings.port,
        max_receive_bytes=settings.max_body_bytes,
        interceptors=[KeyCheck(keys)],
        identity=identity,
    )
    http_server = HttpServer(
        build_app(gateway),
        identity,
        keep_alive_seconds=settings.keep_alive_seconds,
        grace_seconds=settings.grace_seconds,
    )
    serving = asyncio.create_task(http_server.serve(sockets=listeners))
    metrics.label(model_name=gateway.model_name)
    fleet_metrics.export(parts.fleet)
    http_address = join_address(settings.host, listeners[0].getsockname()[1])
    log.info("ready", http=http_address, grpc=grpc_server.address, model=gateway.model_name)
    stopping = asyncio.create_task(stop.wait())
    async with parts.admission.running():
        async with (
            recommending(settings, parts.fleet, parts.identity, poll_seconds=settings.poll_seconds),
            _writing_costs(settings, parts.fleet, cluster),
        ):
            await asyncio.wait({serving, stopping}, return_when=asyncio.FIRST_COMPLETED)
        gateway.readiness.draining = True
        await grpc_server.not_serving()
        await asyncio.sleep(settings.drain_delay_seconds)
        http_server.should_exit = True
        await grpc_server.stop(settings.grace_seconds)
        await serving
    await gateway.trials.close()
    await parts.close()


def _writing_costs(
    settings: GatewaySettings, fleet: Fleet, cluster: Cluster | None
) -> AbstractAsyncContextManager[None]:
    """Tells Kubernetes, where it is asked to, which pods are idle."""
    if cluster is None or not settings.deletion_cost_seconds:
        return nullcontext()
    return DeletionCosts(fleet, cluster.annotate_pod, settings.deletion_cost_seconds).running()


def _store(settings: GatewaySettings) -> SessionStore:
    """The store of session records: Redis, or this process's memory."""
    if settings.redis_url:
        return RedisStore(settings.redis_url.get_secret_value(), ttl_seconds=settings.session_ttl_seconds)
    log.warning("no redis_url: sessions are not durable, and can be resumed at this gateway alone")
    return MemoryStore(ttl_seconds=settings.session_ttl_seconds)


def _kept(settings: GatewaySettings) -> Kept:
    """Where responses are kept."""
    if settings.redis_url:
        url = settings.redis_url.get_secret_value()
        return RedisKept(url, ttl_seconds=settings.session_ttl_seconds)
    return MemoryKept(ttl_seconds=settings.session_ttl_seconds)


def _ledger(settings: GatewaySettings) -> Ledger:
    """Where limits are counted: in Redis for all gateways, or in memory for this one."""
    if not settings.redis_url:
        return MemoryLedger()
    shared = RedisLedger(settings.redis_url.get_secret_value())
    return shared if settings.strict else FallbackLedger(shared)


def _listen(host: str, port: int, stall_seconds: float) -> list[socket.socket]:
    """Listening sockets. A connection whose client reads nothing for `stall_seconds` is closed."""
    try:
        listeners = listen(host, port)
    except OSError as error:
        raise SettingsError(why_not(error, host, port, "--http-port")) from error
    if hasattr(socket, "TCP_USER_TIMEOUT"):  # Linux
        for listener in listeners:
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, round(stall_seconds * 1000))
    return listeners


def run(settings: GatewaySettings) -> None:
    """Load the tokenizer and serve. Raises `SettingsError` when the model has none."""
    telemetry.setup("gateway", settings)
    try:
        check_model(settings.model)
        prompts = Prompts(
            settings.model,
            trust_remote_code=settings.trust_remote_code,
            special_tokens_in_text=settings.special_tokens_in_text,
            tool_parser=settings.tool_parser,
            reasoning_parser=settings.reasoning_parser,
        )
    except NoSuchFolderError as error:
        raise SettingsError(f"--model: {error}") from error
    except (OSError, ValueError) as error:
        raise SettingsError(f"--model: cannot load a tokenizer from {settings.model}: {error}") from error
    keys = _keys(settings)
    run_service(lambda stop: serve(settings, prompts, keys, stop))


def _keys(settings: GatewaySettings) -> ApiKeys | None:
    path = settings.api_keys_file
    try:
        return ApiKeys(path, one_tenant=settings.share_learning) if path else None
    except KeyFileError as error:
        raise SettingsError(f"--api-keys-file: {error}") from error
