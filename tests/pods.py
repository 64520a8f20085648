"""Real services as processes of a test: started on free ports, killed on demand, stopped for certain."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import grpc
import httpx
from grpc_health.v1 import health_pb2, health_pb2_grpc

from paceline.client import SyncGatewayClient
from paceline.local_plan import HOST, choose_addresses
from paceline.v1 import (
    drafter_pb2,
    drafter_pb2_grpc,
    verifier_pb2,
    verifier_pb2_grpc,
)

MODEL = "tiny"
START_SECONDS = 120.0


class Pod:
    """One process, logged to a file."""

    def __init__(self, name: str, command: Sequence[str], folder: Path) -> None:
        self.name = name
        self.log = folder / f"{name}.log"
        environment = {key: value for key, value in os.environ.items() if not key.startswith("PACELINE_")}
        with self.log.open("ab") as output:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=environment
            )

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    @property
    def pid(self) -> int:
        return self._process.pid

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
            if not self.running or time.monotonic() > end:
                raise AssertionError(f"{self.name} is not ready:\n{self.log.read_text()[-4000:]}")

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

    def sees_all(self, *, drafters: bool) -> bool:
        """Whether it takes every pod for healthy."""
        try:
            if httpx.get(f"{self.http}/readyz", timeout=2).status_code != 200:
                return False
        except httpx.TransportError:
            return False
        with SyncGatewayClient(self.grpc, api_key=self.api_key) as client:
            fleet = client.fleet()
        expected = [*fleet.verifiers, *(fleet.drafters if drafters else ())]
        return all(pod.healthy for pod in expected)


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
        verifier_flags: Sequence[str] = (),
        gateway_flags: Sequence[str] = (),
        durability: str = "relaxed",
        ranks: int = 1,
        api_key: str = "",
    ) -> None:
        """`ranks`: processes of each verifier, started by torchrun where they are several.

        `api_key`: one with the scope `status`, where `gateway_flags` demand keys.
        """
        self.folder = folder
        self.model = model
        self.redis_url = redis_url
        self._verifier_flags = verifier_flags
        self._gateway_flags = gateway_flags
        self._durability = durability
        self._ranks = ranks
        self._api_key = api_key
        where = choose_addresses(http_port=0, grpc_port=0, verifiers=verifiers, drafters=drafters)
        self.http, self.grpc = where.url, where.grpc
        self.verifiers, self.drafters = where.verifiers, where.drafters
        self._http_port, self._grpc_port = where.http_port, where.grpc_port
        self.pods: dict[str, Pod] = {}

    @property
    def verifier(self) -> str:
        return self.verifiers[0]

    @property
    def drafter(self) -> str:
        return self.drafters[0]

    def __enter__(self) -> Pods:
        return self

    def __exit__(self, *exc: object) -> None:
        for pod in reversed(self.pods.values()):
            pod.stop()

    def start(self, *, drafters: bool = True) -> Pods:
        """Start everything, wait until all of it is ready and the gateway knows of it."""
        for address in self.verifiers:
            self._launch_verifier(address)
        if drafters:
            for address in self.drafters:
                self.launch_drafter(address)
        self._launch_gateway("gateway", self._http_port, self._grpc_port)
        for address in self.verifiers:
            self.pods[address].until(partial(_serving, address))
        if drafters:
            for address in self.drafters:
                self.pods[address].until(partial(_serving, address))
        self.until_all_are_seen(drafters=drafters)
        return self

    def _launch_gateway(self, name: str, http_port: int, port: int) -> None:
        self._start(
            name,
            "gateway",
            *("--http-port", str(http_port), "--port", str(port)),
            *("--verifiers", ",".join(self.verifiers), "--drafters", ",".join(self.drafters)),
            *("--model", str(self.model), "--model-name", MODEL, "--redis-url", self.redis_url),
            *("--poll-seconds", "0.1", "--max-body-bytes", "65536", "--durability", self._durability),
            *self._gateway_flags,
        )

    def start_gateway(self, name: str) -> Gateway:
        """Start one more gateway of the same fleet and wait until it sees all of it."""
        where = choose_addresses(http_port=0, grpc_port=0, verifiers=0, drafters=0)
        gateway = Gateway(where.url, where.grpc, self._api_key)
        self._launch_gateway(name, where.http_port, where.grpc_port)
        self.pods[name].until(lambda: gateway.sees_all(drafters=True))
        return gateway

    def until_all_are_seen(self, *, drafters: bool = True) -> None:
        """Return when the gateway takes every pod for healthy."""
        self.pods["gateway"].until(
            lambda: Gateway(self.http, self.grpc, self._api_key).sees_all(drafters=drafters)
        )

    def start_verifier(self, address: str) -> Pod:
        """Start a verifier alone and wait until it is ready."""
        self._launch_verifier(address)
        self.pods[address].until(lambda: _serving(address))
        return self.pods[address]

    def launch_drafter(self, address: str) -> None:
        """Start a drafter without waiting for it."""
        self._start(address, "drafter_svc", "--port", _port(address))

    def verifier_status(self, address: str | None = None) -> verifier_pb2.VerifierStatusResponse:
        with grpc.insecure_channel(address or self.verifier) as channel:
            stub = verifier_pb2_grpc.VerifierServiceStub(channel)
            request = verifier_pb2.VerifierStatusRequest()
            status: verifier_pb2.VerifierStatusResponse = stub.Status(request, timeout=5)
        return status

    def drafter_status(self, address: str | None = None) -> drafter_pb2.DrafterStatusResponse:
        with grpc.insecure_channel(address or self.drafter) as channel:
            stub = drafter_pb2_grpc.DrafterServiceStub(channel)
            request = drafter_pb2.DrafterStatusRequest()
            status: drafter_pb2.DrafterStatusResponse = stub.Status(request, timeout=5, wait_for_ready=True)
        return status

    def _launch_verifier(self, address: str) -> None:
        self._start(
            address,
            "verifier_svc",
            *("--port", _port(address), "--model", str(self.model), "--model-name", MODEL),
            *("--dtype", "float32", "--device", "cpu", "--threads", "2", "--redis-url", self.redis_url),
            *("--durability", self._durability, *self._verifier_flags),
            ranks=self._ranks,
        )

    def _start(self, name: str, module: str, *flags: str, ranks: int = 1) -> None:
        launcher = [sys.executable]
        if ranks > 1:
            launcher += ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
        command = [*launcher, "-m", module, "--host", HOST, *flags]
        self.pods[name] = Pod(name, command, self.folder)


def _serving(address: str) -> bool:
    with grpc.insecure_channel(address) as channel:
        try:
            answer = health_pb2_grpc.HealthStub(channel).Check(
                health_pb2.HealthCheckRequest(), timeout=1, wait_for_ready=True
            )
        except grpc.RpcError:
            return False
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


def _port(address: str) -> str:
    return address.rpartition(":")[2]
