"""What a cluster does beside running pods: it probes them, tells of them, and leads to those that are ready.

The API server is that of `tests.kubernetes`; this stands for kubelets, the controller of EndpointSlices and
what leads from a Service to its pods.
"""

from __future__ import annotations

import asyncio
import ssl
import tempfile
from collections.abc import Iterable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Self

from paceline.addresses import join_address
from tests.certificates import Authority, Secret
from tests.deploy.probes import passes
from tests.images.playing import Object
from tests.kubernetes.api_server import ApiServer
from tests.kubernetes.resources import NAMESPACES, PODS, SLICES
from tests.proxy import Proxy

NAMESPACE = "llm"
_TOKEN = "gateway"
# How often a pod that is not ready is probed; later it is as often as its probe says.
_STARTING_SECONDS = 1.0


@dataclass(eq=False, slots=True)
class Pod:
    """A pod that runs."""

    name: str
    address: str
    # As its Deployment has it.
    template: Object
    ready: bool = False
    # It has been told to end.
    going: bool = False

    @property
    def spec(self) -> Object:
        """Of its one container."""
        (spec,) = self.template["spec"]["containers"]
        return dict(spec)

    async def passes(self) -> bool:
        """Whether it is ready, asked as its kubelet does."""
        return await passes(self.spec["readinessProbe"], self.address)

    def is_of(self, service: Object) -> bool:
        """Whether a Service selects it."""
        return bool(service["spec"]["selector"].items() <= self.template["metadata"]["labels"].items())

    def port(self, name: str) -> int:
        """The number of a port of its container."""
        return next(int(port["containerPort"]) for port in self.spec["ports"] if port["name"] == name)


def endpoint_slice(service: Object, pods: Iterable[Pod]) -> Object:
    """The slice of a Service, as its controller makes it. Pods say which ports it has."""
    pods = [pod for pod in pods if pod.is_of(service)]
    labels = service["metadata"]["labels"] | {"kubernetes.io/service-name": service["metadata"]["name"]}
    ports = [
        {"name": port["name"], "port": pod.port(port["targetPort"])}
        for pod in pods[:1]
        for port in service["spec"]["ports"]
    ]
    return {
        "metadata": {"name": service["metadata"]["name"], "labels": labels},
        "addressType": "IPv4",
        "ports": ports,
        "endpoints": [
            {
                "addresses": [pod.address],
                "conditions": {
                    "ready": pod.ready and not pod.going,
                    "serving": pod.ready,
                    "terminating": pod.going,
                },
                "targetRef": {"kind": "Pod", "name": pod.name},
            }
            for pod in pods
        ],
    }


class Cluster:
    """Use as an asynchronous context manager."""

    def __init__(self, objects: Sequence[Object], host: str, account: Path) -> None:
        """`host`: an address of this machine that pods reach. The rendered Role says what a gateway may do.

        `account` becomes the folder of a gateway's service account.
        """
        self.pods: list[Pod] = []
        self.api = ApiServer(host=host, tls=_account(account, host))
        self._host = host
        self._services = [each for each in objects if each["kind"] == "Service"]
        (role,) = [each for each in objects if each["kind"] == "Role"]
        self.api.rules[_TOKEN] = role["rules"]
        self._probing: dict[Pod, asyncio.Task[None]] = {}
        self._turn = 0
        self._open = AsyncExitStack()

    async def __aenter__(self) -> Self:
        self._open.enter_context(self.api)
        self.api.objects.create(NAMESPACES, "", {"metadata": {"name": NAMESPACE}})
        for service in self._services:
            self.api.objects.create(SLICES, NAMESPACE, endpoint_slice(service, ()))
            if service["spec"].get("clusterIP") == "None":
                continue
            for port in service["spec"]["ports"]:
                upstream = partial(self._upstream, service, port["targetPort"])
                await self._open.enter_async_context(Proxy(upstream, host=self._host, port=port["port"]))
        return self

    async def __aexit__(self, *exc: object) -> None:
        for task in self._probing.values():
            task.cancel()
        await self._open.aclose()

    def add(self, pod: Pod) -> None:
        """Probe it, and tell of it."""
        self.pods.append(pod)
        metadata = {"name": pod.name, "labels": pod.template["metadata"]["labels"]}
        self.api.objects.create(PODS, NAMESPACE, {"metadata": metadata, "spec": pod.template["spec"]})
        self._tell()
        self._probing[pod] = asyncio.create_task(self._probe(pod))

    def begin_deletion(self, pod: Pod) -> None:
        """It is told to end: no Service leads to it any more."""
        pod.going = True
        self.api.objects.delete(PODS, NAMESPACE, pod.name, None)
        self._tell()

    def remove(self, pod: Pod) -> None:
        """It has ended."""
        self._probing.pop(pod).cancel()
        self.pods.remove(pod)
        self.api.objects.delete(PODS, NAMESPACE, pod.name, 0)
        self._tell()

    def _tell(self) -> None:
        for service in self._services:
            told = partial(_replaced, endpoint_slice(service, self.pods))
            self.api.objects.update(SLICES, NAMESPACE, service["metadata"]["name"], told)

    async def _probe(self, pod: Pod) -> None:
        probe, failures = pod.spec["readinessProbe"], 0
        while True:
            passed = await pod.passes()
            failures = 0 if passed else failures + 1
            ready = passed or (pod.ready and failures < probe.get("failureThreshold", 3))
            if ready != pod.ready:
                pod.ready = ready
                self._tell()
            await asyncio.sleep(probe["periodSeconds"] if ready else _STARTING_SECONDS)

    def _upstream(self, service: Object, port: str) -> str:
        """Where a new connection to a Service goes: to ready pods in turn, without any to those that go."""
        pods = [pod for pod in self.pods if pod.is_of(service) and pod.ready]
        chosen = [pod for pod in pods if not pod.going] or pods
        if not chosen:
            raise ConnectionRefusedError(f"no pod of {service['metadata']['name']} is ready")
        self._turn += 1
        pod = chosen[self._turn % len(chosen)]
        return join_address(pod.address, pod.port(port))


def _account(folder: Path, host: str) -> ssl.SSLContext:
    """Write what a kubelet mounts: a token, the namespace, the API server's CA. What that server speaks."""
    issued = Authority().issue(host)
    folder.mkdir()
    for name, content in (("token", _TOKEN), ("namespace", NAMESPACE), ("ca.crt", issued.ca.decode())):
        (folder / name).write_text(content)
    with tempfile.TemporaryDirectory() as name:
        secret = Secret(Path(name) / "tls", issued)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(secret.cert, secret.key)
    return context


def _replaced(new: Object, old: Object) -> Object:
    return {**old, **new, "metadata": old["metadata"] | new["metadata"]}
