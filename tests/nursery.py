"""Services forked from a process that has imported what they import: they start in a second, not in ten.

Each is a process of its own, as one that `python -m` starts, and runs the same module from its beginning;
only its imports are done. Nothing has been computed, and no thread and no channel made, before the fork.
"""

from __future__ import annotations

import atexit
import importlib
import json
import os
import runpy
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO

from paceline.models import unused

# What services import, and what transformers imports for them only when it reads a model.
_WITH_TORCH = ("transformers.models.llama.modeling_llama", "verifier_svc.service")
_WITHOUT_TORCH = (
    "gateway.service",
    "drafter_svc.service",
    "transformers.models.auto.tokenization_auto",
    "transformers.tokenization_utils_tokenizers",
)


class Nursery:
    """The process that forks, seen from the tests."""

    def __init__(self, *, torch: bool) -> None:
        """`torch`: for services that import it."""
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.nursery", *(["torch"] if torch else [])],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self._exits: dict[int, int] = {}
        atexit.register(self._close)

    def start(
        self, module: str, flags: Sequence[str], log: Path, environment: Mapping[str, str], group: int | None
    ) -> Forked:
        """Run a module as `python -m` would; `group`: the process's group id, where it is not ours."""
        assert self._process.stdin is not None
        asked = {
            "module": module,
            "flags": list(flags),
            "log": str(log),
            "environment": dict(environment),
            "group": group,
        }
        self._process.stdin.write(json.dumps(asked).encode() + b"\n")
        self._process.stdin.flush()
        while (told := self._read())["event"] != "started":
            pass
        pid = int(told["pid"])
        # Numbers of processes come again: an earlier one's end is not this one's.
        self._exits.pop(pid, None)
        return Forked(pid, self)

    def exit_code(self, pid: int) -> int | None:
        """What a process has ended with; negative is the signal that ended it."""
        output = self._process.stdout
        with selectors.DefaultSelector() as selector:
            assert output is not None
            selector.register(output, selectors.EVENT_READ)
            while pid not in self._exits and selector.select(0):
                self._read()
        return self._exits.get(pid)

    def _read(self) -> dict[str, Any]:
        # A byte at a time: what a buffer holds no selector sees.
        assert self._process.stdout is not None
        line = b""
        while not line.endswith(b"\n"):
            got = os.read(self._process.stdout.fileno(), 1)
            if not got:
                raise AssertionError("the nursery has ended")
            line += got
        told: dict[str, Any] = json.loads(line)
        if told["event"] == "ended":
            self._exits[told["pid"]] = os.waitstatus_to_exitcode(told["status"])
        return told

    def _close(self) -> None:
        self._process.kill()
        self._process.wait()


@cache
def nursery(*, torch: bool) -> Nursery:
    """The one of this test run for services that import torch, or for those that do not."""
    return Nursery(torch=torch)


class Forked:
    """A process of the nursery, used as a `subprocess.Popen`."""

    def __init__(self, pid: int, nursery: Nursery) -> None:
        self.pid = pid
        self._nursery = nursery

    def poll(self) -> int | None:
        """Its exit code, once it has ended."""
        return self._nursery.exit_code(self.pid)

    def wait(self, timeout: float | None = None) -> int:
        """Its exit code. Raises `subprocess.TimeoutExpired`."""
        end = None if timeout is None else time.monotonic() + timeout
        while (code := self.poll()) is None:
            if end is not None and time.monotonic() >= end:
                raise subprocess.TimeoutExpired(f"process {self.pid}", timeout or 0.0)
            time.sleep(0.01)
        return code

    def send_signal(self, number: int) -> None:
        """Nothing if it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        """SIGTERM."""
        self.send_signal(signal.SIGTERM)


def _tell(told: Mapping[str, Any]) -> None:
    os.write(1, json.dumps(told).encode() + b"\n")


def _reap() -> None:
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if not pid:
            return
        _tell({"event": "ended", "pid": pid, "status": status})


def _become(asked: Mapping[str, Any]) -> None:
    """Turn a fresh fork into what `python -m` begins with, but for its imports."""
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    with open(asked["log"], "ab") as log, open(os.devnull, "rb") as nothing:
        os.dup2(nothing.fileno(), 0)
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    if asked["group"] is not None:
        os.setregid(asked["group"], asked["group"])
    os.environ.clear()
    os.environ.update(asked["environment"])
    sys.argv = [asked["module"], *asked["flags"]]


def _serve(requests: BinaryIO) -> Mapping[str, Any] | None:
    """Fork for each request; what a fork is to be, in it, and None in this process when all is over."""
    woken, waker = os.pipe()
    os.set_blocking(waker, False)
    signal.set_wakeup_fd(waker)
    signal.signal(signal.SIGCHLD, lambda number, frame: None)
    with selectors.DefaultSelector() as selector:
        selector.register(requests, selectors.EVENT_READ)
        selector.register(woken, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select():
                if key.fileobj is not requests:
                    os.read(woken, 4096)
                    _reap()
                    continue
                line = requests.readline()
                if not line:
                    return None
                asked: dict[str, Any] = json.loads(line)
                pid = os.fork()
                if not pid:
                    return asked
                _tell({"event": "started", "pid": pid})


def _main() -> None:
    # As the services do.
    torch = "torch" in sys.argv
    for package in ("scipy", "torchao") if torch else ("torch",):
        unused.hide(package)
    for module in _WITH_TORCH if torch else _WITHOUT_TORCH:
        importlib.import_module(module)
    with open(0, "rb", buffering=0, closefd=False) as requests:
        asked = _serve(requests)
    if asked is not None:
        _become(asked)
        runpy.run_module(asked["module"], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    _main()
