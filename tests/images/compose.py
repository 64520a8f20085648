"""`make compose-check`: run compose's services from the images, as deploy/compose.yaml defines them.

Those of other projects (collector, Jaeger, Prometheus, Grafana) are left out: no registry is asked. Needs the
images, which `make images-check` builds, and the right to make a network of podman's.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from openai import OpenAI

from tests.images.build import REDIS, REPOSITORY, TAG
from tests.images.checks import MODEL, MODEL_PATH, CheckError, hold, tiny_model
from tests.images.compose_file import NEURAL, OWN, Definition, seconds, services, words
from tests.images.engine import Container, Engine, EngineError
from tests.images.network import Network
from tests.images.system import KERNELS, accepted_by_source

PROJECT = "paceline-check-compose"
TOKENS = 64
LOADING_SECONDS = 300.0


def variables(models: Path) -> dict[str, str]:
    """Of the file: our images, and a model that is fetched from nowhere."""
    ours = {"PACELINE_REPOSITORY": REPOSITORY, "PACELINE_TAG": TAG, "REDIS_IMAGE": REDIS}
    # The target itself drafts, where a model does: any other one is of other weights only.
    given = {"PACELINE_MODEL": MODEL_PATH, "PACELINE_DRAFT_MODEL": MODEL_PATH, "PACELINE_MODELS": str(models)}
    return {**ours, **given}


class Project:
    """Use `remove` at the end, whatever happened."""

    def __init__(self, engine: Engine, definitions: Mapping[str, Definition]) -> None:
        self.containers: dict[str, Container] = {}
        self._engine = engine
        self._definitions = definitions
        # Kernels are compiled once for all checks on this machine.
        self._volumes = {name: f"{PROJECT}-{name}" for name in ("models", "redis")} | {"kernels": KERNELS}
        self._network = Network(engine, PROJECT)

    def start(self) -> None:
        """Return when all are healthy, by the checks of the file or of their images."""
        addresses = {name: self._network.address() for name in OWN}
        for name, address in addresses.items():
            self._engine.tell(address, name)
        for name, address in addresses.items():
            self.containers[name] = Container(self._engine, f"{PROJECT}-{name}")
            place = ["--name", f"{PROJECT}-{name}", "--network", self._network.name, "--ip", address]
            flags = [*place, "--pull", "never", *words(self._definitions[name], self._volumes)]
            self._engine.call("run", "--detach", *flags)
        for container in self.containers.values():
            container.until(container.healthy)

    def url(self, port: int) -> str:
        """Where this machine reaches a published port of the gateway."""
        return f"http://{self._engine.call('port', f'{PROJECT}-gateway', str(port)).strip()}"

    def stop(self) -> None:
        """End all, the last first, each within its grace. Raises `CheckError` unless it ends with 0."""
        for name in reversed(OWN):
            code = self.containers[name].stop(seconds(self._definitions[name]["stop_grace_period"]))
            hold(code == 0, f"{name} ended with {code}:\n{self.containers[name].log[-4000:]}")

    def remove(self) -> None:
        """Take all of it away, but the kernels."""
        for container in self.containers.values():
            container.remove()
        for name in set(self._volumes.values()) - {KERNELS}:
            self._engine.try_("volume", "rm", "--force", name)
        self._network.remove()


def check_answer(url: str, source: str) -> None:
    """Stream completions until drafted tokens of this source are accepted: a model is loaded meanwhile."""
    client = OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
    end = time.monotonic() + LOADING_SECONDS
    accepted: dict[str, int] = {}
    while not accepted.get(source):
        hold(time.monotonic() < end, f"of {source} nothing was accepted: {accepted}")
        stream = client.completions.create(
            model=MODEL,
            prompt="again and again and again",
            max_tokens=TOKENS,
            stream=True,
            stream_options={"include_usage": True},
            extra_body={"ignore_eos": True},
        )
        pieces = list(stream)
        usage = pieces[-1].usage
        hold(usage is not None and usage.completion_tokens == TOKENS, f"the answer has {usage}")
        accepted = accepted_by_source(pieces)
    print(f"streamed {TOKENS} tokens in {len(pieces)} pieces from {url}; accepted by source: {accepted}")


def check(engine: Engine, models: Path, source: str, *beside: Path) -> None:
    """Raises `CheckError`. `beside`: files that are given after compose.yaml."""
    definitions = services(variables(models), *beside)
    project = Project(engine, definitions)
    try:
        project.start()
        print(f"started {', '.join(OWN)}", *(f"with {file.name}" for file in beside))
        for name, container in project.containers.items():
            user = definitions[name].get("user", "10001:10001")
            hold(container.user == tuple(map(int, user.split(":"))), f"{name} runs as {container.user}")
        check_answer(project.url(8000), source)
        project.stop()
        print("stopped them, and each ended with 0")
    finally:
        project.remove()


def main(arguments: list[str]) -> int:
    """The exit status."""
    parser = argparse.ArgumentParser(prog="make compose-check", description=__doc__)
    parser.parse_args(arguments)
    with tiny_model() as model:
        try:
            engine = Engine(names=True)
            check(engine, model.parent, "text")
            check(engine, model.parent, "draft", NEURAL)
        except (EngineError, CheckError) as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
