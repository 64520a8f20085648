"""The chart rendered with the real helm, for tests."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from tests import tools

ROOT = Path(__file__).parents[2]
CHART = ROOT / "deploy" / "chart"
VALUES = sorted((CHART / "values").glob("*.yaml"))
EVERYTHING = Path(__file__).parent / "everything.yaml"

Object = dict[str, Any]
Values = Mapping[str, Any]


class RefusedError(Exception):
    """Helm refuses the values; the message is helm's."""


def helm(*arguments: str | Path, given: Values | None = None) -> str:
    """What helm prints. `given` are values, which go over those of files. Raises `RefusedError`."""
    command = [tools.helm(), *arguments]
    if given is not None:
        command += ["--values", "-"]
    done = subprocess.run(
        command, input=json.dumps(given or {}), capture_output=True, text=True, cwd=CHART, timeout=60
    )
    if done.returncode:
        raise RefusedError(done.stderr)
    return done.stdout


def template(given: Values | None = None, *files: Path, flags: Sequence[str] = ()) -> str:
    """The rendered chart as text. Raises `RefusedError`."""
    named = [word for file in files for word in ("--values", file)]
    return helm("template", "fleet", CHART, "--namespace", "llm", *named, *flags, given=given or {})


class Rendered:
    """The objects of one rendering."""

    def __init__(self, text: str) -> None:
        self.text = text
        loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
        self.objects: list[Object] = [each for each in yaml.load_all(text, loader) if each]

    @classmethod
    def of(cls, given: Values | None = None, *files: Path) -> Rendered:
        """Raises `RefusedError`."""
        return cls(template(given, *files))

    def all(self, kind: str) -> list[Object]:
        return [each for each in self.objects if each["kind"] == kind]

    def one(self, kind: str, name: str) -> Object:
        named = [each for each in self.all(kind) if each["metadata"]["name"] == name]
        assert len(named) == 1, f"{len(named)} of {kind} {name} in {self.names(kind)}"
        return named[0]

    def names(self, kind: str) -> list[str]:
        return [each["metadata"]["name"] for each in self.all(kind)]

    def pod(self, kind: str, name: str) -> Object:
        """The pod's spec in a workload."""
        spec: Object = self.one(kind, name)["spec"]["template"]["spec"]
        return spec

    def pods(self) -> Iterable[tuple[str, Object]]:
        """Name and pod template (or Pod) of everything that runs."""
        for each in self.objects:
            name, spec = each["metadata"]["name"], each.get("spec", {})
            if each["kind"] == "Pod":
                yield name, each
            elif each["kind"] == "LeaderWorkerSet":
                for part in ("leaderTemplate", "workerTemplate"):
                    yield f"{name}/{part}", spec["leaderWorkerTemplate"][part]
            elif "template" in spec:
                yield name, spec["template"]


def container(pod: Object) -> Object:
    """The one container of a pod's spec."""
    (only,) = pod["containers"]
    assert isinstance(only, dict)
    return only


def environment(pod: Object) -> dict[str, str]:
    """The container's variables that are given by value."""
    return {each["name"]: each["value"] for each in container(pod)["env"] if "value" in each}
