"""Runs a command that dies with the process that started it, even if that one is killed outright."""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def command(argv: tuple[str, ...]) -> tuple[str, ...]:
    """`argv`, tied to the calling process. Start it from the main thread: Linux watches that thread."""
    return (sys.executable, "-m", "paceline.service.tether", str(os.getpid()), *argv)


def main(parent: int, argv: list[str]) -> None:
    """Become `argv`, to be killed when process `parent` ends. Linux only; elsewhere just become it."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it died before the line above
            sys.exit(1)
    os.execvp(argv[0], argv)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
