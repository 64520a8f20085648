"""Run tests in two parts: side by side on all cores, then, one after the other, those marked `serial`.

`make test` runs all but the long tests, `make test-long` the long ones; other arguments are pytest's.
"""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

# Files stay whole: their tests share a fleet. In pytest's order: files that take long, faults and whole
# fleets, come before unit tests, and so all cores end together.
_SIDE_BY_SIDE = (
    *("--numprocesses", "logical", "--maxprocesses", "4"),
    *("--dist", "loadfile", "--no-loadscope-reorder"),
)


def main(arguments: list[str]) -> int:
    """Run both parts, whatever comes of the first; the exit status."""
    long = "long" if "--long" in arguments else "not long"
    given = [argument for argument in arguments if argument != "--long"]
    began = time.monotonic()
    # In a fresh checkout this compiles the CPU's kernels, which else each worker would do for itself.
    subprocess.check_call([sys.executable, "-c", "import paceline.engine.cpu.fused"])
    statuses = [
        subprocess.call([sys.executable, "-m", "pytest", *part, *given])
        for part in ((*_SIDE_BY_SIDE, "-m", f"{long} and not serial"), ("-m", f"{long} and serial"))
    ]
    print(f"both parts of the tests took {time.monotonic() - began:.0f} s", flush=True)
    # A part of which no test was chosen says nothing.
    told = [status for status in statuses if status != pytest.ExitCode.NO_TESTS_COLLECTED]
    return max(told, default=int(pytest.ExitCode.NO_TESTS_COLLECTED))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
