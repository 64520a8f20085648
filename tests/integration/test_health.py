"""`paceline health`, as a container's health check runs it: in the environment of its service."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from paceline.local.plan import choose_addresses
from paceline.net.roles import Role
from tests.certificates import LOCAL, Authority, Secret
from tests.pods import Pod


def health(environment: dict[str, str], *arguments: str) -> tuple[int, str]:
    """Exit status, and what it says."""
    ran = subprocess.run(
        [sys.executable, "-m", "paceline.cli", "health", *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )
    return ran.returncode, ran.stderr


def free_port() -> str:
    where = choose_addresses(http_port=0, grpc_port=0, verifiers=0, drafters=0)
    return where.grpc.rpartition(":")[2]


@pytest.mark.parametrize("tls", [False, True], ids=["plaintext", "mutual TLS"])
def test_a_drafter_is_asked_with_its_own_certificate(tmp_path: Path, tls: bool) -> None:
    environment = {"PACELINE_DRAFTER_PORT": free_port(), "PACELINE_DRAFTER_HOST": "::"}
    if tls:
        secret = Secret(tmp_path / "tls", Authority().issue(Role.DRAFTER.dns_name))
        files = {"CERT": secret.cert, "KEY": secret.key, "CA": secret.ca}
        environment |= {f"PACELINE_DRAFTER_TLS_{name}": str(path) for name, path in files.items()}
    pod = Pod("drafter", [sys.executable, "-m", "drafter_svc"], tmp_path, environment=environment)
    try:
        pod.until(lambda: health(environment, "drafter") == (0, ""))
    finally:
        pod.stop()
    status, said = health(environment, "drafter")
    assert status == 1
    assert f":{environment['PACELINE_DRAFTER_PORT']} does not serve" in said


@pytest.mark.parametrize("tls", [False, True], ids=["plaintext", "TLS"])
def test_a_gateway_answers_before_it_is_ready(tmp_path: Path, tiny_model: Path, tls: bool) -> None:
    environment = {"PACELINE_GATEWAY_HTTP_PORT": free_port()}
    if tls:
        secret = Secret(tmp_path / "public", Authority().issue(*LOCAL))
        environment["PACELINE_GATEWAY_PUBLIC_TLS_CERT"] = str(secret.cert)
        environment["PACELINE_GATEWAY_PUBLIC_TLS_KEY"] = str(secret.key)
    flags = ("--model", str(tiny_model), "--verifiers", "127.0.0.1:1", "--port", "0")
    pod = Pod("gateway", [sys.executable, "-m", "gateway", *flags], tmp_path, environment=environment)
    try:
        pod.until(lambda: health(environment, "gateway") == (0, ""))
        status, said = health(environment, "gateway", "--ready")
    finally:
        pod.stop()
    assert (status, "does not serve" in said) == (1, True)


def test_a_setting_that_makes_no_sense_is_named() -> None:
    status, said = health({"PACELINE_VERIFIER_PORT": "many"}, "verifier")
    assert status == 1
    assert "PACELINE_VERIFIER_PORT" in said
