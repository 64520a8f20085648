"""Every service is killed, paused and cut off under load: no text changes, no position is lost or doubled.

This is `make chaos` in short: a sample of the faults that holds every target and every kind.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from tests.chaos.faults import Target, draw
from tests.chaos.network import Packets
from tests.chaos.report import Report
from tests.chaos.world import running

pytestmark = pytest.mark.long(reason="strikes a fleet 32 times, and waits until it has recovered each time")

SEED = 3
# All targets and kinds, and two pairs.
FAULTS = 18
# With drafters that compute: what fails in their methods is logged, and costs no text.
NEURAL_FAULTS = 9


@pytest.mark.timeout(600)
async def test_clients_get_the_undisturbed_text(tmp_path: Path, tiny_model: Path) -> None:
    async with running(tmp_path, tiny_model, seed=SEED) as world:
        faults = draw(FAULTS, SEED, kinds=world.kinds)
        outcomes = [await world.try_fault(fault) for fault in faults]
        report = Report(outcomes, len(world.load.ended), await world.end())
    report.show(Console(width=160))
    singles = {(fault.targets, fault.kind) for fault in faults if len(fault.targets) == 1}
    assert len(singles) == len(Target) * len(world.kinds)
    assert not report.failures
    assert sum(outcome.moved.total() for outcome in outcomes) > 0
    assert world.eavesdropper.compared > 0


@pytest.mark.timeout(600)
async def test_clients_get_the_undisturbed_text_beside_neural_drafters(
    tmp_path: Path, tiny_model: Path
) -> None:
    async with running(tmp_path, tiny_model, seed=SEED, neural=True) as world:
        for fault in draw(NEURAL_FAULTS, SEED, kinds=world.kinds, targets=(Target.DRAFTER, Target.VERIFIER)):
            outcome = await world.try_fault(fault)
            assert not outcome.failures
        assert not await world.end()


@pytest.mark.timeout(600)
@pytest.mark.skipif(bool(Packets.unavailable()), reason=Packets.unavailable())
def test_clients_get_the_undisturbed_text_where_packets_are_dropped(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.chaos.run", "--drop-packets", "--kind", "drop", "--faults", "5"]
    run = subprocess.run([*command, "--folder", str(tmp_path)], capture_output=True, text=True, timeout=500)
    assert run.returncode == 0, run.stdout + run.stderr
