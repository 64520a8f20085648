"""What the doctor says of a Redis that no test can start: what such a server answers is scripted.

Servers that can be started are in `tests/integration/test_doctor.py`.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from paceline.cli.doctor import store
from paceline.cli.doctor.findings import Finding, Level, Report

WELL = {
    "redis_version": "7.2.4",
    "role": "master",
    "aof_enabled": 1,
    "maxmemory": 0,
    "maxmemory_policy": "noeviction",
    "connected_slaves": 0,
}


async def told(*, seconds: float = 0.0, clock: float = 0.0, **info: Any) -> list[Finding]:
    """Findings that are not ok, of a server that takes so long for an answer."""

    async def ask(command: str) -> Any:
        await asyncio.sleep(seconds)
        if command == "TIME":
            return int(time.time() + clock), 0
        return {**WELL, **info}

    report = Report()
    await store._check_server(report, store._Server("r:6379", ask))
    return [each for each in report.findings if each.level is not Level.OK]


async def test_a_server_that_is_well_has_no_findings() -> None:
    assert await told() == []
    replica = {"ip": "10.0.0.2", "port": 6379, "state": "online", "lag": 1}
    assert await told(connected_slaves=1, slave0=replica) == []


@pytest.mark.parametrize(
    ("said", "level", "words"),
    [
        ({"redis_version": "6.0.16"}, Level.ERROR, "Redis 6.0.16 is too old"),
        ({"role": "slave"}, Level.ERROR, "is a replica"),
        ({"aof_last_write_status": "err"}, Level.ERROR, "cannot write to its disk (aof_last_write_status)"),
        ({"maxmemory": 100, "used_memory": 95}, Level.WARNING, "95% of its memory is used"),
        (
            {"slave0": {"ip": "10.0.0.2", "port": 6379, "state": "online", "lag": 60}},
            Level.WARNING,
            "its replica 10.0.0.2:6379 is online, 60 s behind",
        ),
        (
            {"slave0": {"ip": "10.0.0.2", "port": 6379, "state": "wait_bgsave", "lag": 0}},
            Level.WARNING,
            "is wait_bgsave",
        ),
        ({"seconds": 0.02}, Level.WARNING, "each step's tokens wait for that long"),
        ({"clock": -30.0}, Level.ERROR, "behind this machine's"),
    ],
)
async def test_what_is_wrong_is_named(said: dict[str, Any], level: Level, words: str) -> None:
    (finding,) = await told(**said)
    assert finding.level is level
    assert words in finding.what
    assert finding.do
