"""Run a command that ends with the process that started it, even when that is killed."""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def command(argv: tuple[str, ...]) -> tuple[str, ...]:
    """The command that runs `argv` tied to this process. Start it from the main thread: Linux watches it."""
    return (sys.executable, "-m", "paceline.service.tether", str(os.getpid()), *argv)


def main(parent: int, argv: list[str]) -> None:
    """Execute `argv` in place of this process; Linux kills it when process `parent` ends."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it died before the line above
            sys.exit(1)
    os.execvp(argv[0], argv)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
