"""What the doctor says of services' settings in the environment."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from paceline.cli.doctor import configuration
from paceline.cli.doctor.findings import Check, Level, Report

GATEWAY = {
    "PACELINE_GATEWAY_MODEL": "m",
    "PACELINE_GATEWAY_VERIFIERS": "v:9000",
    "PACELINE_GATEWAY_REDIS_URL": "redis://r",
    "PACELINE_GATEWAY_API_KEYS_FILE": "keys.json",
}


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in list(os.environ):
        if name.startswith("PACELINE_"):
            monkeypatch.delenv(name)
    return monkeypatch


def checked(environment: pytest.MonkeyPatch, **variables: str) -> Report:
    for name, value in variables.items():
        environment.setenv(name, value)
    report = Report()
    configuration.check(report)
    return report


def test_without_settings_there_is_nothing_to_say(environment: pytest.MonkeyPatch) -> None:
    assert checked(environment).findings == []
    # A Service's links are no settings.
    links = {"PACELINE_GATEWAY_SERVICE_HOST": "10.0.0.1", "PACELINE_GATEWAY_PORT": "tcp://10.0.0.1:8001"}
    assert checked(environment, **links).findings == []


def test_sound_settings_are_said_to_be_sound(environment: pytest.MonkeyPatch) -> None:
    (finding,) = checked(environment, **GATEWAY).findings
    assert (finding.level, finding.subject) == (Level.OK, "gateway")


@pytest.mark.parametrize(
    ("variables", "level", "words"),
    [
        ({"PACELINE_GATEWAY_VERIFEIRS": "x"}, Level.ERROR, "unknown setting PACELINE_GATEWAY_VERIFEIRS"),
        ({"PACELINE_GATEWAY_PORT": "high"}, Level.ERROR, "--port (PACELINE_GATEWAY_PORT)"),
        ({"PACELINE_GATEWAY_TLS_CERT": "c.pem"}, Level.ERROR, "--tls-key, --tls-ca is missing"),
        ({"PACELINE_GATEWAY_HOST": "0.0.0.0"}, Level.WARNING, "without TLS"),
        ({"PACELINE_GATEWAY_REDIS_URL": ""}, Level.WARNING, "no --redis-url"),
        ({"PACELINE_GATEWAY_API_KEYS_FILE": ""}, Level.NOTE, "everybody is served"),
        ({"PACELINE_VERIFIER_THREADS": "1"}, Level.NOTE, "model is required"),
        (
            {"PACELINE_VERIFIER_MODEL": "m", "PACELINE_VERIFIER_REDIS_URL": "redis://other"},
            Level.ERROR,
            "different --redis-url",
        ),
    ],
)
def test_what_is_wrong_is_named_with_what_to_do(
    environment: pytest.MonkeyPatch, variables: dict[str, str], level: Level, words: str
) -> None:
    report = checked(environment, **{**GATEWAY, **variables})
    (finding,) = [each for each in report.findings if each.level is not Level.OK]
    assert finding.level is level
    assert words in finding.what
    assert finding.do


@pytest.mark.skipif(Path("/dev/nvidiactl").exists(), reason="there is a GPU here")
def test_a_gpu_that_is_wanted_and_not_there_is_an_error(environment: pytest.MonkeyPatch) -> None:
    wanted = {
        "PACELINE_VERIFIER_MODEL": "m",
        "PACELINE_VERIFIER_DEVICE": "cuda",
        "PACELINE_VERIFIER_REDIS_URL": "r",
    }
    (finding,) = [each for each in checked(environment, **wanted).findings if each.check is Check.DEVICE]
    assert "no NVIDIA device is here" in finding.what


def test_no_secret_is_repeated(environment: pytest.MonkeyPatch) -> None:
    secret = {"PACELINE_VERIFIER_MODEL": "m", "PACELINE_VERIFIER_REDIS_URL": "redis://u:hunter2@r"}
    said = str(checked(environment, **GATEWAY, **secret).findings)
    assert "hunter2" not in said
