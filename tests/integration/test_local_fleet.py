"""Small real processes under a real fleet: order, restarts, and that none is ever left behind."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

import pytest

from paceline.local.fleet import LocalFleet, RestartPolicy, ServiceState
from paceline.local.process import Service, ServiceDiedError
from tests.waiting import wait_until

FAST = RestartPolicy(attempts=3, first_delay_s=0.01, max_delay_s=0.02)


class Fixture:
    """A folder where services leave marks, and the record of what the fleet said."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.said: list[tuple[str, ServiceState]] = []

    def service(self, name: str, body: str = "", *, timeout_s: float = 20.0) -> Service:
        mark = self.folder / name
        code = f"import pathlib, time, signal, os, sys\nmark = pathlib.Path({str(mark)!r})\n{body}\n"
        code += "mark.touch()\ntime.sleep(600)\n"

        async def ready() -> bool:
            return mark.exists()

        return Service(name, (sys.executable, "-c", code), ready, timeout_s)

    def fleet(self, *waves: list[Service]) -> LocalFleet:
        return LocalFleet(waves, self.folder / "logs", self.on_change, policy=FAST)

    def on_change(self, name: str, state: ServiceState, detail: str = "") -> None:
        self.said.append((name, state))


@pytest.fixture
def here(tmp_path: Path) -> Fixture:
    return Fixture(tmp_path)


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    status = Path(f"/proc/{pid}/stat")
    return not status.exists() or status.read_text().rpartition(")")[2].split()[0] != "Z"


async def test_waves_start_in_order_and_stop_in_reverse(here: Fixture) -> None:
    fleet = here.fleet([here.service("first")], [here.service("second"), here.service("third")])
    await fleet.start()
    pids = list(fleet.pids.values())
    assert len(pids) == 3
    await fleet.stop()
    assert not any(map(alive, pids))
    assert here.said.index(("first", ServiceState.READY)) < here.said.index(("second", ServiceState.STARTING))
    assert here.said[-1] == ("first", ServiceState.STOPPED)


async def test_a_service_that_ends_at_the_start_fails_it_with_its_last_words(here: Fixture) -> None:
    bad = here.service("bad", "print('no such model', file=sys.stderr); sys.exit(3)")
    fleet = here.fleet([here.service("good"), bad])
    with pytest.raises(ServiceDiedError, match=r"bad ended with status 3\nno such model\nlog: .*bad\.log"):
        await fleet.start()
    await fleet.stop()
    assert fleet.pids == {}


async def test_a_service_that_never_gets_ready_fails_the_start(here: Fixture) -> None:
    fleet = here.fleet([here.service("slow", "time.sleep(600)", timeout_s=0.3)])
    with pytest.raises(ServiceDiedError, match=r"slow is not ready after 0\.3 s"):
        await fleet.start()
    await fleet.stop()
    assert fleet.pids == {}


async def test_a_killed_service_comes_back_and_the_others_stay(here: Fixture) -> None:
    fleet = here.fleet([here.service("one"), here.service("two")])
    await fleet.start()
    keeping = asyncio.ensure_future(fleet.keep())
    try:
        before = fleet.pids
        os.kill(before["one"], signal.SIGKILL)
        await wait_until(lambda: here.said.count(("one", ServiceState.READY)) == 2, "one is back")
        after = fleet.pids
        assert after["one"] != before["one"]
        assert after["two"] == before["two"]
    finally:
        keeping.cancel()
        await fleet.stop()


async def test_a_service_that_keeps_ending_ends_the_fleet(here: Fixture) -> None:
    # Good once, then never again.
    sick = here.service(
        "sick", "if (mark.parent / 'once').exists(): sys.exit(7)\n(mark.parent / 'once').touch()"
    )
    fleet = here.fleet([sick])
    await fleet.start()
    os.kill(fleet.pids["sick"], signal.SIGKILL)
    with pytest.raises(ServiceDiedError, match="sick keeps ending; giving up\nsick ended with status 7"):
        await fleet.keep()
    await fleet.stop()
    assert here.said.count(("sick", ServiceState.RESTARTING)) == FAST.attempts
    assert fleet.pids == {}


async def test_a_service_that_ignores_sigterm_is_killed_with_its_children(
    here: Fixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("paceline.local.fleet._GRACE_S", 0.2)
    body = (
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "import subprocess\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        "(mark.parent / 'child').write_text(str(child.pid))"
    )
    fleet = here.fleet([here.service("stubborn", body)])
    await fleet.start()
    pid, child = fleet.pids["stubborn"], int((here.folder / "child").read_text())
    assert alive(child)
    await fleet.stop()
    assert not alive(pid)
    await wait_until(lambda: not alive(child), "the child is gone")


async def test_nothing_outlives_an_owner_that_is_killed(tmp_path: Path) -> None:
    owner = """
import asyncio, pathlib, sys
from paceline.local.fleet import LocalFleet
from paceline.local.process import Service

async def main():
    folder = pathlib.Path(sys.argv[1])
    async def ready():
        return True
    sleep = (sys.executable, "-c", "import time; time.sleep(600)")
    services = [Service(f"s{n}", sleep, ready) for n in range(3)]
    fleet = LocalFleet([services], folder, lambda *_: None)
    await fleet.start()
    (folder / "writing").write_text(" ".join(map(str, fleet.pids.values())))
    (folder / "writing").rename(folder / "pids")
    await fleet.keep()

asyncio.run(main())
"""
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", owner, str(tmp_path))
    await wait_until((tmp_path / "pids").exists, "the services run")
    pids = [int(pid) for pid in (tmp_path / "pids").read_text().split()]
    assert len(pids) == 3
    assert all(map(alive, pids))
    process.kill()
    await process.wait()
    await wait_until(lambda: not any(map(alive, pids)), "every service is gone")


def test_delays_double_up_to_a_bound() -> None:
    policy = RestartPolicy(first_delay_s=0.5, max_delay_s=3)
    assert [policy.delay(failures) for failures in range(1, 6)] == [0.5, 1, 2, 3, 3]
