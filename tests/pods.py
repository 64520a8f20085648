"""Real services as processes of a test: started on free ports, killed on demand, stopped for certain."""

from __future__ import annotations

import os
import signal
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Self

import grpc
import httpx
from grpc import ChannelCredentials, ssl_channel_credentials
from grpc_health.v1 import health_pb2, health_pb2_grpc

from paceline.client import SyncGatewayClient
from paceline.local.plan import HOST, choose_addresses
from paceline.v1 import (
    drafter_pb2,
    drafter_pb2_grpc,
    gateway_pb2,
    verifier_pb2,
    verifier_pb2_grpc,
)
from tests.nursery import Forked, nursery

MODEL = "tiny"
START_SECONDS = 240.0
# Services that do not import torch; tests' verifiers have modules of their own.
_WITHOUT_TORCH = ("gateway", "drafter_svc")
# With one of these a drafter does.
_TORCH_FLAGS = {"--draft-model", "--heads"}
# Channels to what may not listen yet: by itself gRPC tries again after a second.
_EAGER = (("grpc.initial_reconnect_backoff_ms", 100), ("grpc.max_reconnect_backoff_ms", 100))


class Pod:
    """One process, logged to a file."""

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        folder: Path,
        *,
        group: int | None = None,
        environment: Mapping[str, str] | None = None,
        forked: bool = False,
    ) -> None:
        """`group`: the process's group id, where it is not ours. `environment`: beside our own.

        `forked`: of `python -m MODULE FLAGS`, by the nursery.
        """
        self.name = name
        self.log = folder / f"{name}.log"
        inherited = {key: value for key, value in os.environ.items() if not key.startswith("PACELINE_")}
        variables = {**inherited, **(environment or {})}
        self._process: subprocess.Popen[bytes] | Forked
        if forked:
            _, _, module, *flags = command
            made = nursery(torch=module not in _WITHOUT_TORCH or not _TORCH_FLAGS.isdisjoint(flags))
            self._process = made.start(module, flags, self.log, variables, group)
            return
        with self.log.open("ab") as output:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=variables,
                group=group,
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    @property
    def exit_code(self) -> int | None:
        return self._process.poll()

    def ranks(self) -> list[int]:
        """Ids of the processes that torchrun, where this is one, has started, by rank."""
        children: dict[int, int] = {}
        for thread in Path(f"/proc/{self._process.pid}/task").iterdir():
            for child in (thread / "children").read_text().split():
                variables = Path(f"/proc/{child}/environ").read_bytes().split(b"\0")
                rank = next((each[5:] for each in variables if each.startswith(b"RANK=")), None)
                if rank is not None:
                    children[int(rank)] = int(child)
        return [process for _, process in sorted(children.items())]

    def until(self, ready: Callable[[], bool]) -> None:
        """Return when `ready()`; fail with the log when it ends first or takes too long."""
        end = time.monotonic() + START_SECONDS
        while not ready():
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(0.05)
            if (code := self.exit_code) is not None or time.monotonic() > end:
                why = "takes too long" if code is None else f"ended with {code}"
                raise AssertionError(f"{self.name} is not ready, {why}:\n{self.log.read_text()[-4000:]}")

    def kill(self) -> None:
        """SIGKILL: no goodbye to anybody."""
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()

    def pause(self) -> None:
        """SIGSTOP: it neither answers nor closes anything."""
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """SIGCONT."""
        self._process.send_signal(signal.SIGCONT)

    def terminate(self) -> None:
        """SIGTERM, and no wait."""
        self._process.terminate()

    def stop(self) -> None:
        """SIGTERM, then SIGKILL."""
        self.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self.kill()


@dataclass(frozen=True, slots=True)
class Gateway:
    """Where one gateway answers."""

    http: str
    grpc: str
    # One with the scope `status`, where keys are demanded.
    api_key: str = ""
    # CA of its certificate, where it speaks TLS.
    ca: bytes | None = None

    @property
    def credentials(self) -> ChannelCredentials | None:
        """What a gRPC client needs; None for plaintext."""
        return ssl_channel_credentials(self.ca) if self.ca else None

    @property
    def https(self) -> ssl.SSLContext:
        """What an HTTP client needs."""
        return ssl.create_default_context(cadata=self.ca.decode() if self.ca else None)

    def sees_all(self, *, drafters: bool) -> bool:
        """Whether it takes every pod for healthy."""
        try:
            if httpx.get(f"{self.http}/readyz", timeout=2, verify=self.https).status_code != 200:
                return False
        except httpx.TransportError:
            return False
        fleet = self.fleet()
        expected = [*fleet.verifiers, *(fleet.drafters if drafters else ())]
        return all(pod.healthy for pod in expected)

    def fleet(self) -> gateway_pb2.FleetResponse:
        """The fleet as it sees it."""
        with SyncGatewayClient(self.grpc, self.credentials, api_key=self.api_key) as client:
            return client.fleet()


class Pods:
    """A fleet with the tiny model in float32. Use as a context manager."""

    def __init__(
        self,
        folder: Path,
        model: Path,
        redis_url: str,
        *,
        verifiers: int = 1,
        drafters: int = 1,
        gateways: int = 1,
        verifier_flags: Sequence[str] = (),
        drafter_flags: Sequence[str] = (),
        gateway_flags: Sequence[str] = (),
        durability: str = "relaxed",
        ranks: int = 1,
        metrics: bool = False,
        api_key: str = "",
        default_settings: bool = False,
        verifier_threads: int = 1,
        host: str = HOST,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """`ranks`: processes of each verifier, started by torchrun where they are several.

        Pods are named by their addresses, gateways `gateway`, `gateway-2` and so on.
        `metrics`: each service serves them on the port that `metrics_ports` has for its name.
        `api_key`: one with the scope `status`, where `gateway_flags` demand keys.
        `default_settings`: gateways ask pods as seldom, and take bodies as large, as they do for users.
        `verifier_threads`: 1 for tests that run side by side. With 2, as users have on two cores, the tiny
        model's steps are slow enough for most trees to come in time; such a test is `serial`.
        `host`: an address of this machine that all listen on. `environment`: the pods', beside our own.
        """
        self._host = host
        self._environment = environment
        self.folder = folder
        self.model = model
        self.redis_url = redis_url
        self._verifier_flags = verifier_flags
        self._drafter_flags = drafter_flags
        self._gateway_flags = gateway_flags
        self._durability = durability
        self._ranks = ranks
        self._verifier_threads = str(verifier_threads)
        self._api_key = api_key
        self._quick_flags = () if default_settings else ("--poll-seconds", "0.1", "--max-body-bytes", "65536")
        # All in one call, so that no two are the same: further gateways' ports, too.
        more = 2 * (gateways - 1)
        where = choose_addresses(
            http_port=0, grpc_port=0, verifiers=verifiers, drafters=drafters + more, host=host
        )
        self._metrics = metrics
        self.metrics_ports: dict[str, int] = {}
        self.http, self.grpc = where.url, where.grpc
        self.verifiers, self.drafters = where.verifiers, where.drafters[:drafters]
        self.gateways = {"gateway": self._gateway(where.url, where.grpc)}
        further = where.drafters[drafters:]
        for number, ports in enumerate(zip(further[::2], further[1::2], strict=True), 2):
            self.gateways[f"gateway-{number}"] = self._gateway(f"http://{ports[0]}", ports[1])
        # What others are told instead of a pod's address, where something stands between.
        self.told: dict[str, str] = {}
        # How gateways find pods, where they are not told their addresses.
        self.discovery_flags: tuple[str, ...] = ()
        # What verifiers and drafters are started from; some tests' do not behave.
        self.verifier_module = "verifier_svc"
        self.drafter_module = "drafter_svc"
        # Groups that pods run in, where it is not ours.
        self.groups: dict[str, int | None] = {}
        self.pods: dict[str, Pod] = {}

    @property
    def verifier(self) -> str:
        return self.verifiers[0]

    @property
    def drafter(self) -> str:
        return self.drafters[0]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        for pod in reversed(self.pods.values()):
            pod.resume()
            pod.terminate()
        for pod in self.pods.values():
            pod.stop()

    def start(self, *, drafters: bool = True) -> Self:
        """Start everything, wait until all of it is ready and the gateway knows of it."""
        started = [*self.verifiers, *(self.drafters if drafters else ())]
        for name in (*started, *self.gateways):
            self.launch(name)
        for address in started:
            self.pods[address].until(partial(self.serving, address))
        self.until_all_are_seen(drafters=drafters)
        return self

    def launch(self, name: str) -> None:
        """Start a pod without waiting for it."""
        if name in self.gateways:
            self._launch_gateway(name)
        elif name in self.verifiers:
            self._launch_verifier(name)
        else:
            self.launch_drafter(name)

    def restart(self, name: str) -> None:
        """SIGTERM to a pod, start it again, and return when the gateways use it."""
        self.pods[name].stop()
        self.launch(name)
        if name not in self.gateways:
            self.pods[name].until(partial(self.serving, name))
        self.until_all_are_seen()

    def _launch_gateway(self, name: str, *flags: str) -> None:
        gateway = self.gateways[name]
        self._start(
            name,
            "gateway",
            *("--http-port", _port(gateway.http), "--port", _port(gateway.grpc)),
            *(self.discovery_flags or self._static()),
            *("--model", str(self.model), "--model-name", MODEL, "--redis-url", self.redis_url),
            *("--durability", self._durability, *self._quick_flags, *self._gateway_flags, *flags),
        )

    def start_gateway(self, name: str, *flags: str) -> Gateway:
        """Start one more gateway of the same fleet, with more flags, and wait until it sees all of it."""
        gateway = self.add_gateway(name, *flags)
        self.pods[name].until(lambda: gateway.sees_all(drafters=True))
        return gateway

    def add_gateway(self, name: str, *flags: str) -> Gateway:
        """Start one more gateway, as `start_gateway`, without waiting for it."""
        where = choose_addresses(http_port=0, grpc_port=0, verifiers=0, drafters=0, host=self._host)
        gateway = self.gateways[name] = self._gateway(where.url, where.grpc)
        self._launch_gateway(name, *flags)
        return gateway

    def until_all_are_seen(self, *, drafters: bool = True) -> None:
        """Return when every gateway takes every pod for healthy."""
        for name, gateway in self.gateways.items():
            self.pods[name].until(partial(gateway.sees_all, drafters=drafters))

    def start_verifier(self, address: str) -> Pod:
        """Start a verifier alone and wait until it is ready."""
        self._launch_verifier(address)
        self.pods[address].until(lambda: self.serving(address))
        return self.pods[address]

    def launch_drafter(self, address: str) -> None:
        """Start a drafter without waiting for it."""
        self._start(address, self.drafter_module, "--port", _port(address), *self._drafter_flags)

    def verifier_status(self, address: str | None = None) -> verifier_pb2.VerifierStatusResponse:
        with self._channel(address or self.verifier) as channel:
            stub = verifier_pb2_grpc.VerifierServiceStub(channel)
            request = verifier_pb2.VerifierStatusRequest()
            status: verifier_pb2.VerifierStatusResponse = stub.Status(request, timeout=5)
        return status

    def drafter_status(self, address: str | None = None) -> drafter_pb2.DrafterStatusResponse:
        with self._channel(address or self.drafter) as channel:
            stub = drafter_pb2_grpc.DrafterServiceStub(channel)
            request = drafter_pb2.DrafterStatusRequest()
            status: drafter_pb2.DrafterStatusResponse = stub.Status(request, timeout=5, wait_for_ready=True)
        return status

    def _static(self) -> tuple[str, ...]:
        return "--verifiers", self._as_told(self.verifiers), "--drafters", self._as_told(self.drafters)

    def _as_told(self, addresses: Sequence[str]) -> str:
        return ",".join(self.told.get(address, address) for address in addresses)

    def _gateway(self, http: str, address: str) -> Gateway:
        return Gateway(http, address, self._api_key)

    def _channel(self, address: str) -> grpc.Channel:
        return grpc.insecure_channel(address, options=_EAGER)

    def serving(self, address: str) -> bool:
        """Whether a pod that may have just been started answers."""
        with self._channel(address) as channel:
            try:
                answer = health_pb2_grpc.HealthStub(channel).Check(
                    health_pb2.HealthCheckRequest(), timeout=1, wait_for_ready=True
                )
            except grpc.RpcError:
                return False
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)

    def _launch_verifier(self, address: str) -> None:
        self._start(
            address,
            self.verifier_module,
            *("--port", _port(address), "--model", str(self.model), "--model-name", MODEL),
            *(
                "--dtype",
                "float32",
                "--device",
                "cpu",
                "--threads",
                self._verifier_threads,
                "--redis-url",
                self.redis_url,
            ),
            *("--durability", self._durability, *self._verifier_flags),
            ranks=self._ranks,
        )

    def _start(self, name: str, module: str, *flags: str, ranks: int = 1) -> None:
        launcher = [sys.executable]
        if ranks > 1:
            launcher += ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
        if self._metrics:
            self.metrics_ports[name] = choose_addresses(
                http_port=0, grpc_port=0, verifiers=0, drafters=0, host=self._host
            ).http_port
            flags += ("--metrics-port", str(self.metrics_ports[name]))
        command = [*launcher, "-m", module, "--host", self._host, *flags]
        self.pods[name] = Pod(
            name,
            command,
            self.folder,
            group=self.groups.get(name),
            environment=self._environment,
            # Some variables are read only by what is imported.
            forked=ranks == 1 and self._environment is None,
        )


def _port(address: str) -> str:
    return address.rpartition(":")[2]
