"""Environments for clients that nobody here wrote, made when a test first asks for one."""

from __future__ import annotations

import fcntl
import hashlib
import shutil
import site
import subprocess
import sys
import venv
from collections.abc import Callable
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent
# Beside our own packages, so that `make clean` takes them along.
_ROOT = Path(sys.prefix) / "clients"
# Its content says what is installed.
_MARK = ".installed"
# What pip and npm say where they reach no registry.
_OUT_OF_REACH = (
    "ConnectionError",
    "NewConnectionError",
    "No matching distribution",
    "ENOTFOUND",
    "ETIMEDOUT",
)


def python_with(name: str) -> Path:
    """The interpreter of an environment that has the packages of `python/NAME.txt`, and beneath them ours.

    So torch, and whatever else fits, is not installed again. The file names all that is.
    """
    pins = FOLDER / "python" / f"{name}.txt"

    def make(folder: Path) -> None:
        venv.create(folder, symlinks=True)
        [packages] = folder.glob("lib/python*/site-packages")
        ours = "; ".join(f"site.addsitedir({each!r})" for each in site.getsitepackages())
        (packages / "ours.pth").write_text(f"import site; {ours}\n")
        pip = [sys.executable, "-m", "pip", "--python", str(folder / "bin" / "python"), "install", "--quiet"]
        as_named = ["--no-deps", "--no-compile", "--disable-pip-version-check", "--retries", "1"]
        _run(folder, *pip, *as_named, "--requirement", str(pins))

    return _ensure(name, pins, make) / "bin" / "python"


def node_with(script: str) -> list[str]:
    """The command that runs `node/SCRIPT` with the packages of `node/package-lock.json`."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if not (node and npm):
        pytest.skip("there is no node and npm here")

    def make(folder: Path) -> None:
        for name in ("package.json", "package-lock.json"):
            shutil.copy(FOLDER / "node" / name, folder)
        _run(folder, npm, "ci", "--no-audit", "--no-fund", "--ignore-scripts", "--fetch-retries", "1")

    folder = _ensure("node", FOLDER / "node" / "package-lock.json", make)
    # Modules are looked for beside a script.
    return [node, str(shutil.copy(FOLDER / "node" / script, folder))]


def _ensure(name: str, pins: Path, make: Callable[[Path], None]) -> Path:
    """The environment's folder; made anew where it is not of these pins."""
    folder = _ROOT / name
    wanted = hashlib.sha256(pins.read_bytes()).hexdigest()
    mark = folder / _MARK
    _ROOT.mkdir(exist_ok=True)
    with (_ROOT / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (mark.is_file() and mark.read_text() == wanted):
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            make(folder)
            mark.write_text(wanted)
    return folder


def _run(folder: Path, *command: str) -> None:
    ran = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=900)
    if ran.returncode:
        said = (ran.stdout + ran.stderr).strip()[-2000:]
        if any(sign in said for sign in _OUT_OF_REACH):
            pytest.skip(f"{folder.name} cannot be fetched here: {said.splitlines()[-1]}")
        raise AssertionError(f"{folder.name} cannot be installed: {said}")
