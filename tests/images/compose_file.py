"""Compose's file as words for `podman run`, for those services that need no image of others."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from tests.images.checks import CheckError
from tests.images.engine import ROOT

FILE = ROOT / "deploy" / "compose.yaml"
NEURAL = ROOT / "deploy" / "compose.neural.yaml"
# In the order of what they depend on.
OWN = ("redis", "verifier", "drafter", "gateway")
_VARIABLE = re.compile(r"\$\{(\w+):-([^}]*)\}")

Definition = Mapping[str, Any]


def services(variables: Mapping[str, str], *beside: Path) -> dict[str, Definition]:
    """The definitions of our services by name; what is not among the variables has its default.

    `beside`: files that are given after compose.yaml.
    """
    found: Any = {}
    for file in (FILE, *beside):
        text = _VARIABLE.sub(lambda found: variables.get(found[1], found[2]), file.read_text())
        found = _merged(found, yaml.safe_load(text)["services"])
    return {name: found[name] for name in OWN}


def _merged(below: Any, above: Any) -> Any:
    """As compose merges files: mappings by key, lists end to end."""
    if isinstance(below, dict) and isinstance(above, dict):
        return below | {key: _merged(below.get(key), value) for key, value in above.items()}
    if isinstance(below, list) and isinstance(above, list):
        return [*below, *(each for each in above if each not in below)]
    return above


def words(definition: Definition, volumes: Mapping[str, str]) -> list[str]:
    """Flags, image and command. Raises `CheckError` for a key that this does not know.

    `volumes`: names of podman's by those in the file. Published ports become free ones of this machine.
    """
    flags = [word for key, value in definition.items() for word in _flags(key, value, volumes)]
    return [*flags, definition["image"], *definition.get("command", ())]


def seconds(text: str) -> int:
    """A duration as the file has it."""
    return int(text.removesuffix("s"))


def _flags(key: str, value: Any, volumes: Mapping[str, str]) -> Iterator[str]:
    match key:
        case "image" | "command" | "depends_on":
            return
        case "environment":
            for name, each in value.items():
                yield f"--env={name}={each}"
        case "ports":
            for each in value:
                host, _, port = each.split(":")
                yield f"--publish={host}::{port}"
        case "volumes":
            for each in value:
                source, _, rest = each.partition(":")
                yield f"--volume={volumes.get(source, source)}:{rest}"
        case "read_only":
            # Compose mounts no file systems of its own there; podman would.
            yield from ("--read-only", "--read-only-tmpfs=false") if value else ()
        case "cap_drop":
            for each in value:
                yield f"--cap-drop={each}"
        case "security_opt":
            for each in value:
                yield f"--security-opt={each.removesuffix(':true')}"
        case "user" | "restart":
            yield f"--{key}={value}"
        case "entrypoint":
            yield f"--entrypoint={json.dumps(value)}"
        case "stop_grace_period":
            yield f"--stop-timeout={seconds(value)}"
        case "healthcheck":
            # When it is asked is the check's own choice.
            yield f"--health-cmd={json.dumps(value['test'][1:])}"
        case _:
            raise CheckError(f"compose.yaml has {key}, and the check does not know what podman calls it")
