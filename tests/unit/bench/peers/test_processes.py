from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import pytest

from bench.peers import processes
from tests.waiting import wait_until

# Spins in a child of its own, as servers with workers do.
SPINNER = "import os\nos.fork()\nwhile True: pass"


@pytest.fixture
def spinner() -> Iterator[int]:
    process = subprocess.Popen([sys.executable, "-c", SPINNER], start_new_session=True)
    yield process.pid
    for running in processes.members(process.pid):
        subprocess.run(["kill", "-9", str(running)], check=True)
    process.wait()


def cpu_s(session: int) -> float:
    return processes.cpu_seconds_by_session().get(session, 0.0)


async def test_a_stopped_session_takes_no_processor_time(spinner: int) -> None:
    await wait_until(lambda: cpu_s(spinner) > 0.1, "the session spins")
    assert len(processes.members(spinner)) == 2
    processes.stop(spinner)
    before = cpu_s(spinner)
    # Time that somebody else takes.
    sum(range(10_000_000))
    assert cpu_s(spinner) - before < 0.05
    with processes.awake(spinner):
        await wait_until(lambda: cpu_s(spinner) > before + 0.1, "it goes on")
    before = cpu_s(spinner)
    sum(range(10_000_000))
    assert cpu_s(spinner) - before < 0.05


def test_waking_nobody_is_no_error() -> None:
    with processes.awake(None):
        pass
