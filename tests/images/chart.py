"""`make chart-check`: play the rendered chart in podman, run `helm test`'s command, kill pods under a stream.

Needs the images, which `make images-check` builds. Names of Services lead to this machine by a file of hosts
that podman gives its containers.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml
from openai import OpenAI

from paceline.addresses import parse_address
from paceline.local.plan import Addresses, choose_addresses
from tests.deploy.rendering import template
from tests.images.build import TAG
from tests.images.engine import Container, Engine, EngineError
from tests.images.playing import helm_test, playable, secrets
from tests.images.run import CheckError
from tests.images.system import KERNELS, MODEL
from tests.tiny import make_tiny_model

VALUES = Path(__file__).parent / "chart-values.yaml"
NAMES = "127.0.0.1 localhost fleet-paceline-gateway fleet-paceline-redis\n"
WORKLOADS = ("redis", "drafter-default", "verifier-default", "verifier-other", "gateway")
PROMPT = "again and again and again"
LONG = 3000


def values(at: Addresses, model: Path, kernels: str = "") -> dict[str, Any]:
    """What `chart-values.yaml` cannot know: ports that are free here, the images' tag, where the model is."""
    ports = iter(_port(address) for address in (*at.drafters, *at.verifiers))
    drafter, redis, metrics = next(ports), next(ports), [next(ports) for _ in range(4)]
    pools = [_port(address) for address in at.verifiers]
    image = {"image": {"tag": TAG}}
    mounted = {
        "extraVolumes": [{"name": "tiny", "hostPath": {"path": str(model)}}],
        "extraVolumeMounts": [{"name": "tiny", "mountPath": f"/models/{MODEL}", "readOnly": True}],
    }
    http, grpc = at.http_port, _port(at.grpc)
    return {
        "gateway": {
            **image,
            **mounted,
            "discovery": {"verifiers": list(at.verifiers), "drafters": [f"127.0.0.1:{drafter}"]},
            "ports": {"http": http, "grpc": grpc, "metrics": metrics[0]},
            "service": {"httpPort": http, "grpcPort": grpc},
        },
        "drafter": {**image, "ports": {"grpc": drafter, "metrics": metrics[1]}},
        "verifier": {**image, **mounted, "kernelCache": {"hostPath": kernels}},
        "verifierPools": {
            name: {"ports": {"grpc": port, "metrics": counted}}
            for name, port, counted in zip(("default", "other"), pools, metrics[2:], strict=True)
        },
        "redis": {"internal": {"port": redis}},
    }


class Release:
    """The chart's pods, played."""

    def __init__(self, engine: Engine, folder: Path, model: Path) -> None:
        self.at = choose_addresses(http_port=0, grpc_port=0, verifiers=2, drafters=6)
        # Those that `make images-check` compiled, where it ran.
        kernels = engine.try_("volume", "inspect", "--format", "{{.Mountpoint}}", KERNELS).stdout.strip()
        rendered = template(values(self.at, model, kernels), VALUES)
        self._objects = [each for each in yaml.safe_load_all(rendered) if each]
        self._file = folder / "played.yaml"
        self._file.write_text(yaml.safe_dump_all(playable(self._objects)))
        self._engine = engine
        self.client = OpenAI(base_url=f"{self.at.url}/v1", api_key="none", max_retries=0)

    def start(self) -> None:
        """Return when every pod is ready."""
        for name, data in secrets(self._objects).items():
            kept = self._file.with_name(f"{name}.json")
            kept.write_text(json.dumps(data))
            self._engine.call("secret", "create", name, str(kept))
        self._engine.call("kube", "play", "--network", "host", str(self._file))
        for service, name in (
            ("drafter", "drafter-default"),
            ("verifier", "verifier-default"),
            ("verifier", "verifier-other"),
        ):
            self.until_ready(name, "health", service)
        self.until_ready("gateway", "health", "gateway", "--ready")

    def container(self, workload: str) -> Container:
        """The one container of a workload's pod."""
        component = workload.partition("-")[0]
        return Container(self._engine, f"fleet-paceline-{workload}-pod-0-{component}")

    def until_ready(self, workload: str, *command: str) -> None:
        """Return when `paceline COMMAND` in a pod ends with 0."""
        container = self.container(workload)
        container.until(lambda: container.execute("paceline", *command), ends=False)

    def test(self) -> str:
        """What the command of `helm test` prints."""
        container = helm_test(self._objects)
        env = [word for each in container["env"] for word in ("--env", f"{each['name']}={each['value']}")]
        flags = ["--rm", "--network", "host", "--read-only", "--pull", "never", *env]
        first, *rest = container["command"]
        return self._engine.call("run", *flags, "--entrypoint", first, container["image"], *rest)

    def text(self, killed: tuple[str, ...] = ()) -> str:
        """A long answer, streamed; each of `killed` is killed while it comes."""
        stream = self.client.completions.create(
            model=MODEL,
            prompt=PROMPT,
            max_tokens=LONG,
            temperature=0,
            stream=True,
            stream_options={"include_usage": True},
            extra_body={"ignore_eos": True},
        )
        pieces, tokens, victims = [], 0, list(killed)
        for number, piece in enumerate(stream):
            pieces += [choice.text for choice in piece.choices]
            tokens = piece.usage.completion_tokens if piece.usage else tokens
            if victims and number and number % 20 == 0:
                self.container(victims.pop(0)).kill()
        if tokens != LONG or victims:
            raise CheckError(f"the answer has {tokens} tokens of {LONG}; not killed: {victims}")
        return "".join(pieces)

    def remove(self) -> None:
        """Take all of it away."""
        for workload in WORKLOADS:
            self._engine.try_("pod", "rm", "--force", "--time", "0", f"fleet-paceline-{workload}-pod-0")
        for name in secrets(self._objects):
            self._engine.try_("secret", "rm", name)


def check(release: Release) -> None:
    """Start it, test it, kill pods of it. Raises `CheckError`."""
    release.start()
    print(f"played {len(WORKLOADS)} workloads of the chart")
    print(f"helm test's command: {release.test().strip()!r}")
    undisturbed = release.text()
    # A session's verifier is one of the two.
    victims = ("verifier-default", "drafter-default", "verifier-other")
    started = {name: release.container(name).state["StartedAt"] for name in victims}
    for name in victims:
        disturbed = release.text((name,))
        if disturbed != undisturbed:
            raise CheckError(f"with {name} killed, the text was another one")
        release.until_ready(name, "health", name.partition("-")[0])
        if release.container(name).state["StartedAt"] == started[name]:
            raise CheckError(f"{name} was not killed")
        print(f"{name} was killed under a stream of {LONG} tokens: it came back, and the text is the same")


def main(arguments: list[str]) -> int:
    """The exit status."""
    parser = argparse.ArgumentParser(prog="make chart-check", description=__doc__)
    parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = make_tiny_model(folder / MODEL)
        for path in (folder, model, *model.iterdir()):
            path.chmod(0o755)
        try:
            release = Release(Engine(hosts=NAMES), folder, model)
            try:
                check(release)
            finally:
                release.remove()
        except (EngineError, CheckError) as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
    return 0


def _port(address: str) -> int:
    return parse_address(address)[1]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
