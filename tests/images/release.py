"""A release of the chart: its workloads as pods that podman plays, and what Deployments do with them."""

from __future__ import annotations

import asyncio
import json
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import yaml

from paceline.addresses import join_address
from paceline.local.plan import choose_addresses
from tests.deploy.rendering import Values, template
from tests.images.build import TAG
from tests.images.checks import MODEL_PATH, hold
from tests.images.cluster import Cluster, Pod
from tests.images.engine import Container, Engine, EngineError
from tests.images.network import Network
from tests.images.playing import MOUNTED, Object, deployments, playable, pod_of_test, secrets, with_account
from tests.images.system import KERNELS
from tests.waiting import wait_until

VALUES = Path(__file__).parent / "chart-values.yaml"
PREFIX = "fleet-paceline-"
# In the order in which they are started.
WORKLOADS = (
    *("redis", "verifier-default", "verifier-other", "drafter-default", "drafter-neural"),
    "gateway",
)
NETWORK = "paceline-check-chart"
_START_SECONDS = 600.0


def values(ports: tuple[int, int, int], model: Path, kernels: str = "") -> dict[str, Any]:
    """What `chart-values.yaml` cannot know.

    `ports`: free ones of this machine, for the Services: HTTP, gRPC, Redis. `kernels`: a folder of them.
    """
    http, grpc, redis = ports
    image = {"image": {"tag": TAG}}
    mounted = {
        "extraVolumes": [{"name": "tiny", "hostPath": {"path": str(model)}}],
        "extraVolumeMounts": [{"name": "tiny", "mountPath": MODEL_PATH, "readOnly": True}],
    }
    return {
        "gateway": {**image, **mounted, "service": {"httpPort": http, "grpcPort": grpc}},
        "drafter": image,
        "neuralDrafter": image,
        "drafterPools": {
            "neural": {"weights": {"hostPath": str(model.parent)}, "kernelCache": {"hostPath": kernels}}
        },
        "verifier": {**image, **mounted, "kernelCache": {"hostPath": kernels}},
        "redis": {"internal": {"port": redis}},
    }


@dataclass(eq=False, slots=True)
class Played(Pod):
    """A pod that podman plays."""

    container: Container = field(kw_only=True)

    async def until_ready(self) -> None:
        """Raises `EngineError` with its log when that takes too long."""
        try:
            await wait_until(lambda: self.ready, f"{self.name} is ready", _START_SECONDS)
        except AssertionError as error:
            raise EngineError(f"{error}:\n{self.container.log[-4000:]}") from error


class Release:
    """Use as an asynchronous context manager, which starts it, and leaves nothing of it behind."""

    def __init__(self, engine: Engine, model: Path) -> None:
        """`model`: a folder, beside which files may be written."""
        self._engine = engine
        self._folder = model.parent
        self._account = self._folder / "account"
        where = choose_addresses(http_port=0, grpc_port=0, verifiers=0, drafters=1, host="0.0.0.0")
        self._ports = where.http_port, where.grpc_port, int(where.drafters[0].rpartition(":")[2])
        # Those that `make images-check` compiled, where it ran.
        kernels = engine.try_("volume", "inspect", "--format", "{{.Mountpoint}}", KERNELS).stdout.strip()
        self._values = values(self._ports, model, kernels)
        self._objects: list[Object] = []
        self._revisions = dict.fromkeys(WORKLOADS, 0)
        self._pods: dict[str, Played] = {}
        self._open = AsyncExitStack()

    @property
    def http(self) -> str:
        """URL of the gateways' Service."""
        return f"http://{join_address(self._network.host, self._ports[0])}"

    @property
    def grpc(self) -> str:
        """Its gRPC address."""
        return join_address(self._network.host, self._ports[1])

    def pod(self, workload: str) -> Played:
        """The one pod of a workload."""
        return self._pods[workload]

    async def __aenter__(self) -> Self:
        try:
            self._render({})
            # Of a check that was killed.
            self._remove()
            self._network = Network(self._engine, NETWORK)
            self._open.callback(self._network.remove)
            self._open.callback(self._remove)
            self._engine.tell(self._network.host, f"{PREFIX}gateway", f"{PREFIX}redis")
            for name, data in secrets(self._objects).items():
                kept = self._folder / f"{name}.json"
                kept.write_text(json.dumps(data))
                self._engine.call("secret", "create", name, str(kept))
            # This machine has an address in the network once a pod has.
            redis = await self._play("redis")
            self.cluster = await self._open.enter_async_context(
                Cluster(self._objects, self._network.host, self._account)
            )
            self.cluster.add(redis)
            for workload in WORKLOADS[1:]:
                self.cluster.add(await self._play(workload))
            for pod in self._pods.values():
                await pod.until_ready()
        except BaseException:
            await self._open.aclose()
            raise
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._open.aclose()

    async def test(self, name: str) -> str:
        """What a pod of `helm test` logs. Raises `CheckError` if it fails."""
        pod = pod_of_test(self._objects, name)
        played = pod["metadata"]["name"]
        await self._kube_play(playable(self._objects, pod, played))
        container = Container(self._engine, f"{played}-{pod['spec']['containers'][0]['name']}")
        code = await asyncio.to_thread(container.wait)
        log = container.log
        await self._podman("pod", "rm", "--force", played)
        hold(code == 0, f"helm test's {name} ended with {code}:\n{log}")
        return log

    async def upgrade(self, changed: Values) -> list[str]:
        """Render with other values, and roll the workloads whose pods change, one by one; their names."""
        before = deployments(self._objects)
        self._render(changed)
        rolled = []
        for workload in WORKLOADS:
            now = deployments(self._objects)[PREFIX + workload]["spec"]
            if now["template"] != before[PREFIX + workload]["spec"]["template"]:
                await self._roll(workload, surge=now["strategy"]["type"] == "RollingUpdate")
                rolled.append(workload)
        return rolled

    async def _roll(self, workload: str, *, surge: bool) -> None:
        """`surge`: the new pod is ready before the old one goes."""
        old = self._pods[workload]
        if not surge:
            await self._retire(old)
        new = await self._play(workload)
        self.cluster.add(new)
        await new.until_ready()
        if surge:
            await self._retire(old)

    async def _retire(self, pod: Played) -> None:
        """End a pod as its kubelet does. Raises `CheckError` if it does not end by itself, with 0."""
        self.cluster.begin_deletion(pod)
        hook = pod.spec.get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
        await asyncio.sleep(hook)
        grace = pod.template["spec"].get("terminationGracePeriodSeconds", 30)
        code = await asyncio.to_thread(pod.container.stop, grace - hook)
        hold(code == 0, f"{pod.name} ended with {code}:\n{pod.container.log[-4000:]}")
        await self._podman("pod", "rm", "--force", pod.name)
        self.cluster.remove(pod)

    def _render(self, changed: Values) -> None:
        files = [VALUES, self._folder / "values.yaml"]
        files[1].write_text(yaml.safe_dump(self._values))
        self._objects = [each for each in yaml.safe_load_all(template(changed, *files)) if each]

    async def _play(self, workload: str) -> Played:
        self._revisions[workload] += 1
        deployment = deployments(self._objects)[PREFIX + workload]
        played = deployment
        if workload != "redis":
            api = self.cluster.api
            played = with_account(deployment, self._account, api.host, api.port)
        name = f"{PREFIX}{workload}-{self._revisions[workload]}"
        address = self._network.address()
        await self._kube_play(playable(self._objects, played, name), "--ip", address)
        pod = f"{name}-pod-0"
        container = Container(self._engine, f"{pod}-{workload.partition('-')[0]}")
        self._pods[workload] = Played(pod, address, deployment["spec"]["template"], container=container)
        return self._pods[workload]

    async def _kube_play(self, objects: list[Object], *flags: str) -> None:
        file = self._folder / "played.yaml"
        file.write_text(yaml.safe_dump_all(objects))
        await self._podman("kube", "play", "--network", self._network.name, *flags, str(file))

    async def _podman(self, *arguments: str) -> str:
        return await asyncio.to_thread(self._engine.call, *arguments)

    def _remove(self) -> None:
        for pod in self._engine.call("pod", "ps", "--format", "{{.Name}}").split():
            if pod.startswith(PREFIX):
                self._engine.try_("pod", "rm", "--force", "--time", "0", pod)
        for name in secrets(self._objects):
            self._engine.try_("secret", "rm", name)
        for volume in self._engine.call("volume", "ls", "--quiet").split():
            if volume.removeprefix(MOUNTED).startswith(PREFIX):
                self._engine.try_("volume", "rm", "--force", volume)
