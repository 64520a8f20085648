"""podman as tests use it: images built, containers run, pods played, all of them taken away again."""

from __future__ import annotations

import atexit
import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent.parent
PACKAGES = "buildah podman runc catatonit mmdebstrap"
# For machines that give root no cgroups and no limits of its own to set, as containers that tests run in.
_NESTED = """\
default_ulimits = ["nofile=1024:1024", "nproc=4096:4096"]
netns = "host"
[engine]
cgroup_manager = "cgroupfs"
runtime = "runc"
events_logger = "file"
"""


class EngineError(Exception):
    """podman is missing or said no; the message is its own."""


class Engine:
    """podman, with what it needs where no systemd runs."""

    def __init__(self, *, names: bool = False) -> None:
        """`names`: containers find by name what `tell` says. Raises `EngineError` without podman."""
        if shutil.which("podman") is None:
            raise EngineError(
                f"podman is missing; on Debian: apt-get install --no-install-recommends {PACKAGES}"
            )
        self.environment = dict(os.environ)
        nested = not Path("/run/systemd/system").is_dir()
        if nested:
            self.environment.setdefault("BUILDAH_ISOLATION", "chroot")
        if names or (nested and "CONTAINERS_CONF" not in os.environ):
            folder = Path(tempfile.mkdtemp(prefix="paceline-engine-"))
            atexit.register(shutil.rmtree, folder)
            self._hosts = folder / "hosts"
            self._hosts.write_text("127.0.0.1 localhost\n" if names else Path("/etc/hosts").read_text())
            configuration = folder / "containers.conf"
            configuration.write_text(
                f'[containers]\nbase_hosts_file = "{self._hosts}"\n{_NESTED if nested else ""}'
            )
            self.environment["CONTAINERS_CONF"] = str(configuration)

    def tell(self, address: str, *names: str) -> None:
        """Let containers that start from now on find an address by these names."""
        with self._hosts.open("a") as hosts:
            hosts.write(f"{address} {' '.join(names)}\n")

    def call(self, *arguments: str) -> str:
        """What podman prints. Raises `EngineError`."""
        done = self.try_(*arguments)
        if done.returncode:
            raise EngineError(f"podman {' '.join(arguments)}: {done.stderr.strip()}")
        return done.stdout

    def try_(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run podman, whatever comes of it."""
        return subprocess.run(
            ["podman", *arguments], env=self.environment, capture_output=True, text=True, check=False
        )

    def has_image(self, name: str) -> bool:
        """Whether an image is here."""
        return self.try_("image", "exists", name).returncode == 0

    def run(
        self,
        name: str,
        image: str,
        *command: str,
        variables: Mapping[str, str] | None = None,
        volumes: Sequence[str] = (),
    ) -> Container:
        """Start a container as a cluster with a strict policy does: read-only, without any capability.

        `volumes`: beside those that its image declares.
        """
        flags = ["--name", name, "--read-only", "--read-only-tmpfs=false", "--cap-drop", "all"]
        flags += ["--security-opt", "no-new-privileges", "--network", "host", "--pull", "never"]
        flags += [word for key, value in (variables or {}).items() for word in ("--env", f"{key}={value}")]
        flags += [word for volume in volumes for word in ("--volume", volume)]
        self.call("run", "--detach", *flags, image, *command)
        return Container(self, name)


class Container:
    """One that was started. Its volumes go with it."""

    def __init__(self, engine: Engine, name: str) -> None:
        self.name = name
        self._engine = engine

    @property
    def state(self) -> dict[str, Any]:
        """podman's `State` of it."""
        found: dict[str, Any] = json.loads(self._engine.call("container", "inspect", self.name))[0]["State"]
        return found

    @property
    def running(self) -> bool:
        return bool(self.state["Running"])

    @property
    def exit_code(self) -> int:
        """Of a container that has ended."""
        return int(self.state["ExitCode"])

    @property
    def user(self) -> tuple[int, int]:
        """Effective user and group of its process, as this machine sees them."""
        lines = Path(f"/proc/{self.state['Pid']}/status").read_text().splitlines()
        ids = dict(line.split(":\t", 1) for line in lines if line.startswith(("Uid", "Gid")))
        return int(ids["Uid"].split()[1]), int(ids["Gid"].split()[1])

    def healthy(self) -> bool:
        """What its image's own health check says now."""
        return self._engine.try_("healthcheck", "run", self.name).returncode == 0

    def until(self, ready: Callable[[], bool], *, ends: bool = True, seconds: float = 600.0) -> None:
        """Return when `ready()`. Raises `EngineError` with its log when that takes too long.

        `ends`: or when it ends first, for one that nobody starts anew.
        """
        end = time.monotonic() + seconds
        while not ready():
            if (ends and not self.running) or time.monotonic() > end:
                raise EngineError(f"{self.name} is not ready:\n{self.log[-4000:]}")
            # A probe takes a second of a core, which what it asks about needs.
            time.sleep(5.0)

    def execute(self, *command: str) -> bool:
        """Whether a command in it ends with 0."""
        return self._engine.try_("exec", self.name, *command).returncode == 0

    @property
    def log(self) -> str:
        done = self._engine.try_("logs", self.name)
        return done.stdout + done.stderr

    def terminate(self) -> None:
        """SIGTERM, and no wait."""
        self._engine.call("kill", "--signal", "TERM", self.name)

    def kill(self) -> None:
        """SIGKILL to its process, not by podman, which then starts it anew where it is to."""
        os.kill(self.state["Pid"], signal.SIGKILL)

    def stop(self, seconds: int) -> int:
        """SIGTERM, and SIGKILL after so many seconds; nobody starts it anew. Its exit code."""
        self._engine.call("stop", "--time", str(seconds), self.name)
        return self.exit_code

    def wait(self) -> int:
        """Its exit code once it ends."""
        self._engine.call("wait", self.name)
        return self.exit_code

    def remove(self) -> None:
        """Kill it if it runs."""
        self._engine.try_("rm", "--force", "--time", "0", "--volumes", self.name)
