"""Drafters as processes: without torch, and with methods that others have installed."""

from __future__ import annotations

import asyncio
import random
import re
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from paceline.features import FeatureGrant
from paceline.net import rpc
from paceline.v1 import drafter_pb2, drafter_pb2_grpc, session_pb2
from tests.echo_method import LAYER, WEIGHTS
from tests.pods import Pod
from tests.scripted import TEXT, VOCAB, Play, ScriptedVerifier, verifier
from tests.waiting import wait_until

ROOT = Path(__file__).parents[2]
# `python -m drafter_svc` where torch and what stands on it cannot be imported.
WITHOUT_TORCH = """
import runpy, sys
sys.modules.update(dict.fromkeys(("torch", "transformers"), None))
sys.argv[0] = "drafter_svc"
runpy.run_module("drafter_svc", run_name="__main__")
"""
HEAVY = """
import torch

def factory(settings):
    raise AssertionError("there is no torch")
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of an installation with two methods: one that computes, and one that needs torch."""
    folder = tmp_path_factory.mktemp("installed")
    (folder / "heavy_method.py").write_text(HEAVY)
    info = folder / "methods-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: methods\nVersion: 1\n")
    (info / "entry_points.txt").write_text(
        "[paceline.drafting]\necho = tests.echo_method:factory\nheavy = heavy_method:factory\n"
        "absent = no_such_package.method:factory\n"
    )
    return {"PYTHONPATH": f"{ROOT}:{folder}"}


@asynccontextmanager
async def process(
    folder: Path, flags: Sequence[str], environment: dict[str, str]
) -> AsyncIterator[drafter_pb2_grpc.DrafterServiceStub]:
    """A drafter without torch, until the block is left."""
    command = [sys.executable, "-c", WITHOUT_TORCH, "--port", "0", *flags]
    pod = Pod("drafter", command, folder, environment=environment)
    try:
        await asyncio.to_thread(pod.until, lambda: " ready " in pod.log.read_text())
        said = re.search(r"address=(\S+)", pod.log.read_text())
        assert said is not None
        async with rpc.channel(said[1]) as channel:
            yield drafter_pb2_grpc.DrafterServiceStub(channel)
    finally:
        await asyncio.to_thread(pod.stop)
    assert pod.exit_code == 0, pod.log.read_text()


async def attach(stub: drafter_pb2_grpc.DrafterServiceStub, address: str, play: Play) -> None:
    await stub.Attach(
        drafter_pb2.AttachRequest(
            key=session_pb2.SessionKey(session_id="s", epoch=1),
            verifier_address=address,
            known_ids=play.text[: play.known],
            sampling=session_pb2.SamplingParams(top_p=1.0, max_tokens=500),
        )
    )


async def test_a_drafter_of_text_needs_no_torch(tmp_path: Path, installed: dict[str, str]) -> None:
    """Though a method that needs it is installed."""
    play = Play(TEXT, known=10)
    script = ScriptedVerifier({"s": play}, step_seconds=0.01)
    async with verifier(script) as server, process(tmp_path, (), installed) as stub:
        await attach(stub, server.address, play)
        await wait_until(lambda: play.known == len(TEXT), "the text is committed")
    assert play.accepted > play.steps


async def test_a_method_that_somebody_installed_drafts_beside_the_text(
    tmp_path: Path, installed: dict[str, str]
) -> None:
    play = Play(random.Random(5).choices(range(1, VOCAB), k=300), known=50)
    grant = FeatureGrant((LAYER,), 5, "float32")
    script = ScriptedVerifier({"s": play}, grant=grant, weights=WEIGHTS, step_seconds=0.01)
    flags = ("--method", "lookup+recycling+echo")
    async with verifier(script) as server, process(tmp_path, flags, installed) as stub:
        await attach(stub, server.address, play)
        await wait_until(lambda: play.known == len(play.text), "the text is committed")
    assert list(script.hellos[0].sources) == ["text", "prediction", "echo"]
    assert script.hellos[0].feedback_top_k == 8
    assert play.by_source[2] > 50
    assert play.bases[0]
    # Its weights were read before anybody was told that the pod is there.
    log = (tmp_path / "drafter.log").read_text()
    assert re.search(r"echo loads.* thread=.drafting methods", log)
    assert log.index("echo loads") < log.index(" ready ")


def run(installed: dict[str, str], *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, *words],
        env=installed,
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize(
    ("method", "why"),
    [
        ("heavy", r"heavy needs packages .* \(torch is missing\): pip install 'paceline\[neural\]'"),
        ("lookup+absent", r"absent needs packages .* \(no_such_package is missing\)"),
        ("lookup+nothing", "no drafting method 'nothing'; there are lookup, recycling, absent, "),
    ],
    ids=["torch", "package", "unknown"],
)
def test_a_method_that_cannot_be_used_stops_the_start_with_a_reason(
    installed: dict[str, str], method: str, why: str
) -> None:
    ran = run(installed, "--method", method)
    assert ran.returncode == 2
    assert ran.stderr.startswith("drafter: --method (PACELINE_DRAFTER_METHOD): ")
    assert re.search(why, ran.stderr), ran.stderr


def test_the_list_says_what_each_method_needs_and_why_one_cannot_be_used(installed: dict[str, str]) -> None:
    ran = run(installed, "methods", "--method", "lookup+echo")
    assert ran.returncode == 0, ran.stderr
    names = [line for line in ran.stdout.splitlines() if not line.startswith("    ")]
    others = [name for name in names if name.split()[-1] not in ("draft", "eagle")]
    assert others[:5] == ["* lookup", "  recycling", "  absent", "* echo", "  heavy"]
    assert f"hidden states of layers {LAYER} of the model with weights {WEIGHTS}" in ran.stdout
    assert "found echo.safetensors" in ran.stdout
    assert "cannot be used: heavy needs packages that are not installed (torch is missing)" in ran.stdout
