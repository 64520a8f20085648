"""Each extra brings all that its service imports, and an installation without it says so."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests import extras
from tests.pods import Pod

# Without site-packages: only what `extras.install` has put into a folder is there.
PYTHON = (sys.executable, "-S")


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of an installation without extras."""
    return extras.environment(extras.install(tmp_path_factory.mktemp("bare")))


def paceline(environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command line."""
    return subprocess.run(
        [*PYTHON, "-m", "paceline.cli", *arguments],
        env={**os.environ, **environment, "COLUMNS": "200"},
        capture_output=True,
        text=True,
    )


def test_clients_and_the_command_line_need_no_extra(bare: dict[str, str]) -> None:
    assert paceline(bare, "--help").returncode == 0
    nobody = paceline(bare, "status", "--gateway", "127.0.0.1:1")
    assert (nobody.returncode, nobody.stderr.partition(":")[0]) == (1, "error")
    assert "no gateway answers" in nobody.stderr
    assert paceline(bare, "key", "create", "team-a").returncode == 0
    assert "drafter at 127.0.0.1:9100 does not serve" in paceline(bare, "health", "drafter").stderr
    subprocess.run(
        [*PYTHON, "-c", "from paceline.client import GatewayClient"],
        env={**os.environ, **bare},
        check=True,
    )


@pytest.mark.parametrize(
    ("command", "extra"),
    [
        (("gateway", "--model", "m", "--verifiers", "localhost:1"), "gateway"),
        (("verifier", "--model", "m"), "verifier"),
        (("drafter",), "drafter"),
        (("up", "--model", "{model}"), "all"),
        (("bench", "tables"), "bench"),
    ],
    ids=["gateway", "verifier", "drafter", "up", "bench"],
)
def test_a_command_without_its_extra_names_it(
    bare: dict[str, str], tiny_model: Path, command: tuple[str, ...], extra: str
) -> None:
    ran = paceline(bare, *(word.format(model=tiny_model) for word in command))
    assert ran.returncode == 1
    wanted = (
        rf"error: `paceline {command[0]}` needs .* \(\w+ is missing\): pip install 'paceline\[{extra}\]'\n"
    )
    assert re.fullmatch(wanted, ran.stderr), ran.stderr


@pytest.mark.parametrize(
    ("extra", "module", "flags"),
    [
        # At `debug` it says when its chat template cannot be used.
        ("gateway", "gateway", ("--verifiers", "127.0.0.1:1", "--http-port", "0", "--log-level", "debug")),
        ("drafter", "drafter_svc", ()),
        ("verifier", "verifier_svc", ("--device", "cpu", "--threads", "1", "--kv-tokens", "2048")),
    ],
    ids=["gateway", "drafter", "verifier"],
)
def test_a_service_serves_with_its_extra_alone(
    tmp_path: Path, tiny_model: Path, extra: str, module: str, flags: tuple[str, ...]
) -> None:
    installed = extras.install(tmp_path, extra)
    assert (installed / "torch").exists() == (extra == "verifier")
    model = () if extra == "drafter" else ("--model", str(tiny_model))
    redis = () if extra == "drafter" else ("--redis-url", "redis://127.0.0.1:1/0")
    command = [*PYTHON, "-m", module, "--port", "0", *model, *redis, *flags]
    pod = Pod(extra, command, tmp_path, environment=extras.environment(installed))
    try:
        pod.until(lambda: " ready " in pod.log.read_text())
        assert "template refuses" not in pod.log.read_text()
    finally:
        pod.stop()
    assert pod.exit_code == 0, pod.log.read_text()
