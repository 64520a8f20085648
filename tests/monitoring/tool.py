"""Prometheus' own programs: from the path, or from Debian's package, unpacked beside other tools' files."""

from __future__ import annotations

import fcntl
import re
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

import pytest

_FOLDER = Path.home() / ".cache" / "paceline" / "tools" / "prometheus"
# Older ones lack functions that the rules use, or print other messages.
_OLDEST = (2, 42)


@cache
def tool(name: str) -> Path:
    """The program `prometheus` or `promtool`; skips the test where there is no way to have it."""
    found = shutil.which(name)
    path = Path(found) if found else _FOLDER / "usr" / "bin" / name
    if not path.exists():
        if not shutil.which("apt-get") or not shutil.which("dpkg-deb"):
            pytest.skip(f"{name} is not in the path, and this is no Debian to take it from")
        _unpack()
    told = subprocess.run([path, "--version"], capture_output=True, text=True, check=True)
    version = re.search(r"version (\d+)\.(\d+)", told.stdout + told.stderr)
    assert version is not None, told
    assert tuple(map(int, version.groups())) >= _OLDEST, f"{path} is older than {_OLDEST}"
    return path


def _unpack() -> None:
    """Unpack Debian's package `prometheus` without installing it: that needs no rights."""
    _FOLDER.mkdir(parents=True, exist_ok=True)
    with (_FOLDER / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if (_FOLDER / "usr" / "bin" / "promtool").exists():
            return
        with tempfile.TemporaryDirectory(dir=_FOLDER) as folder:
            _download(Path(folder))
            (package,) = Path(folder).glob("prometheus_*.deb")
            unpacked = Path(folder) / "unpacked"
            subprocess.run(["dpkg-deb", "-x", package, unpacked], check=True)
            (unpacked / "usr").rename(_FOLDER / "usr")


def _download(folder: Path) -> None:
    # The user that apt fetches as may not write here. Signatures are checked all the same.
    apt = ["apt-get", "-o", "APT::Sandbox::User=root"]
    if subprocess.run([*apt, "download", "prometheus"], cwd=folder, capture_output=True).returncode == 0:
        return
    # A new machine knows no packages yet. What there are is looked up here, and not for the whole machine.
    (folder / "lists" / "partial").mkdir(parents=True)
    apt += ["-o", f"Dir::State::Lists={folder / 'lists'}"]
    subprocess.run([*apt, "update"], check=True, capture_output=True)
    subprocess.run([*apt, "download", "prometheus"], cwd=folder, check=True, capture_output=True)
