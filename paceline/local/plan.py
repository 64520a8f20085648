"""Which services a local fleet runs, with which addresses and flags."""

from __future__ import annotations

import errno
import random
import socket
import sys
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

from paceline.addresses import is_loopback, join_address, parse_address, reachable
from paceline.local import redis_server
from paceline.local.process import Service
from paceline.local.redis_server import LocalRedis
from paceline.models.store import LocalModel
from paceline.net.readiness import grpc_serving, http_ok
from paceline.service.machine import usable_cores

HOST = "127.0.0.1"
# Range in which free ports are looked for. Systems take the ports of outgoing connections from other
# ranges, so none of those takes a service's port while it starts.
_FREE_PORTS = range(20000, 32768)


@dataclass(frozen=True, slots=True)
class Addresses:
    """Where everything listens: the gateway on `host`, the others on the loopback interface."""

    host: str
    http_port: int
    grpc_port: int
    verifiers: tuple[str, ...]
    drafters: tuple[str, ...]

    @property
    def url(self) -> str:
        """The gateway's HTTP address, as this machine reaches it."""
        return f"http://{join_address(reachable(self.host), self.http_port)}"

    @property
    def grpc(self) -> str:
        """The gateway's gRPC address, as this machine reaches it."""
        return join_address(reachable(self.host), self.grpc_port)


@dataclass(frozen=True, slots=True)
class Drafting:
    """How the drafters draft: as `paceline drafter` takes it, empty for its default."""

    method: str = ""
    draft_model: str = ""

    def flags(self, model: LocalModel) -> tuple[str, ...]:
        """What a drafter for this target is told."""
        # The verifier has all cores: more threads beside them would only make it wait.
        threads = ("--threads", "1")
        flags = ("--method", self.method, "--model", str(model.folder), *threads) if self.method else ()
        return (*flags, "--draft-model", self.draft_model) if self.draft_model else flags

    @property
    def kept_states(self) -> tuple[str, ...]:
        """What a verifier is told, so that it keeps what the method needs."""
        return ("--keep-states", "eagle") if "eagle" in self.method.split("+") else ()


class PortTakenError(Exception):
    """Another program listens on a port that was asked for."""

    def __init__(self, port: int) -> None:
        super().__init__(f"port {port} is taken by another program")
        self.port = port


class NotOurHostError(Exception):
    """The host asked for is not an address of this machine."""


def choose_addresses(
    *, http_port: int, grpc_port: int, verifiers: int, drafters: int, host: str = HOST
) -> Addresses:
    """Free ports for everything; 0 takes a free one. Raises `PortTakenError` and `NotOurHostError`.

    They are free now; a service that finds its port taken a moment later ends and says so. Where `host`
    is a loopback address, verifiers and drafters listen there, too.
    """
    near = host if is_loopback(host) else HOST
    taken = [_bound(host, port) for port in (http_port, grpc_port)]
    taken += [_bound(near, 0) for _ in range(verifiers + drafters)]
    try:
        # All are held open at once, so that no two are the same.
        ports = [held.getsockname()[1] for held in taken]
    finally:
        for held in taken:
            held.close()
    pods = [join_address(near, port) for port in ports[2:]]
    return Addresses(host, ports[0], ports[1], tuple(pods[:verifiers]), tuple(pods[verifiers:]))


DEFAULT_DRAFTING = Drafting()


def plan_fleet(
    model: LocalModel,
    addresses: Addresses,
    *,
    redis_url: str,
    redis: LocalRedis | None,
    drafting: Drafting = DEFAULT_DRAFTING,
) -> list[list[Service]]:
    """The waves of services to start; `redis` is the server to start for `redis_url`, if any."""
    gateway = _gateway(model, addresses, redis_url)
    verifiers = _verifiers(model, addresses.verifiers, redis_url, drafting)
    drafters = [
        Service(
            f"drafter-{number}",
            (sys.executable, "-m", "drafter_svc", *_listening(address), *drafting.flags(model)),
            partial(grpc_serving, address),
            60.0,
        )
        for number, address in enumerate(addresses.drafters, start=1)
    ]
    waves = [[*verifiers, *drafters, gateway]]
    if redis is not None:
        waves.insert(0, [Service("redis", redis.command, partial(redis_server.answers, redis.url), 20.0)])
    return waves


def _verifiers(
    model: LocalModel, addresses: tuple[str, ...], redis_url: str, drafting: Drafting
) -> list[Service]:
    flags: tuple[str, ...] = ("--model", str(model.folder), "--model-name", model.name)
    flags += drafting.kept_states
    if len(addresses) > 1:  # they share the cores; a single one takes them all by itself
        flags += ("--threads", str(max(1, usable_cores() // len(addresses))))
    return [
        Service(
            f"verifier-{number}",
            (sys.executable, "-m", "verifier_svc", *_listening(address), *flags),
            partial(grpc_serving, address),
            variables={"PACELINE_VERIFIER_REDIS_URL": redis_url},
        )
        for number, address in enumerate(addresses, start=1)
    ]


def _gateway(model: LocalModel, addresses: Addresses, redis_url: str) -> Service:
    command = [sys.executable, "-m", "gateway", "--host", addresses.host]
    command += ["--http-port", str(addresses.http_port), "--port", str(addresses.grpc_port)]
    command += ["--verifiers", ",".join(addresses.verifiers), "--drafters", ",".join(addresses.drafters)]
    command += ["--model", str(model.folder), "--model-name", model.name]
    return Service(
        "gateway",
        tuple(command),
        partial(http_ok, f"{addresses.url}/readyz"),
        variables={"PACELINE_GATEWAY_REDIS_URL": redis_url},
    )


def _listening(address: str) -> tuple[str, ...]:
    host, port = parse_address(address)
    return "--host", host, "--port", str(port)


def _bound(host: str, port: int) -> socket.socket:
    if port:
        # As servers do: a port whose old connections are still closing counts as free.
        return _bound_to(host, port, reuse=True)
    for candidate in random.sample(_FREE_PORTS, 100):
        with suppress(PortTakenError):
            return _bound_to(host, candidate, reuse=False)
    return _bound_to(host, 0, reuse=False)


def _bound_to(host: str, port: int, *, reuse: bool) -> socket.socket:
    try:
        family, kind, _, _, where = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except socket.gaierror as error:
        raise NotOurHostError(f"{host}: {error.strerror}") from None
    held = socket.socket(family, kind)
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, reuse)
    try:
        held.bind(where)
    except (OSError, OverflowError) as error:
        held.close()
        if isinstance(error, OSError) and error.errno == errno.EADDRNOTAVAIL:
            raise NotOurHostError(f"{host} is no address of this machine") from None
        raise PortTakenError(port) from None
    return held
