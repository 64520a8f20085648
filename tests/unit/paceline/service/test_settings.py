"""Flags over environment over defaults; what is wrong is named before anything starts."""

from __future__ import annotations

import os
import subprocess
import sys

import click
import pytest
from click.testing import CliRunner
from pydantic import Field
from pydantic_settings import SettingsConfigDict

from paceline.service.settings import ServiceSettings, SettingsError, load_settings, service_command


class OvenSettings(ServiceSettings):
    model_config = SettingsConfigDict(env_prefix="PACELINE_OVEN_")

    port: int = Field(9, ge=0, le=65535, description="Port.")
    dish: str = Field(description="What is baked.")
    fan: bool = Field(False, description="Hot air.")


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("PACELINE_"):
            monkeypatch.delenv(name)


def test_flags_win_over_environment_over_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PACELINE_OVEN_DISH", "bread")
    monkeypatch.setenv("PACELINE_OVEN_PORT", "80")
    settings = load_settings(OvenSettings, port="81")
    assert (settings.dish, settings.port, settings.fan) == ("bread", 81, False)


def test_a_missing_setting_is_named_as_flag_and_variable() -> None:
    with pytest.raises(SettingsError, match="dish is required: give --dish or PACELINE_OVEN_DISH"):
        load_settings(OvenSettings)


def test_an_unknown_variable_stops_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PACELINE_OVEN_DISHH", "bread")
    with pytest.raises(SettingsError, match=r"unknown setting PACELINE_OVEN_DISHH; .*PACELINE_OVEN_DISH"):
        load_settings(OvenSettings, dish="bread")


def test_another_services_variable_is_none_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PACELINE_FRIDGE_PORT", "1")
    assert load_settings(OvenSettings, dish="bread").port == 9


@pytest.mark.parametrize(
    ("variable", "value", "flag"),
    [
        ("PORT", "eighty", "--port"),
        ("PORT", "65536", "--port"),
        ("PORT", "-1", "--port"),
        ("FAN", "perhaps", "--fan"),
        ("LOG_LEVEL", "loud", "--log-level"),
        ("GRACE_SECONDS", "-1", "--grace-seconds"),
    ],
)
def test_a_bad_value_is_named(monkeypatch: pytest.MonkeyPatch, variable: str, value: str, flag: str) -> None:
    monkeypatch.setenv(f"PACELINE_OVEN_{variable}", value)
    with pytest.raises(SettingsError) as caught:
        load_settings(OvenSettings, dish="bread")
    assert f"{flag} (PACELINE_OVEN_{variable})" in str(caught.value)
    assert value in str(caught.value)


def test_every_wrong_setting_is_told_at_once() -> None:
    with pytest.raises(SettingsError) as caught:
        load_settings(OvenSettings, port="x", fan="perhaps")
    assert [line.split()[0] for line in str(caught.value).splitlines()] == ["--port", "dish", "--fan"]


def links(service: str, address: str, ports: dict[str, int]) -> dict[str, str]:
    """What the kubelet puts into a container's environment for a Service (`envvars.FromServices`)."""
    name = service.upper().replace("-", "_")
    host = f"[{address}]" if ":" in address else address
    first = next(iter(ports.values()))
    variables = {f"{name}_SERVICE_HOST": address, f"{name}_SERVICE_PORT": str(first)}
    variables[f"{name}_PORT"] = f"tcp://{host}:{first}"
    for port_name, port in ports.items():
        if port_name:
            variables[f"{name}_SERVICE_PORT_{port_name.upper()}"] = str(port)
        variables[f"{name}_PORT_{port}_TCP"] = f"tcp://{host}:{port}"
        variables[f"{name}_PORT_{port}_TCP_PROTO"] = "tcp"
        variables[f"{name}_PORT_{port}_TCP_PORT"] = str(port)
        variables[f"{name}_PORT_{port}_TCP_ADDR"] = address
    return variables


@pytest.mark.parametrize("address", ["10.0.0.1", "fd00::1"])
@pytest.mark.parametrize(
    "service", ["paceline-oven", "paceline-oven-metrics", "paceline-oven-port", "paceline"]
)
def test_what_service_links_inject_is_not_read(
    monkeypatch: pytest.MonkeyPatch, service: str, address: str
) -> None:
    for name, value in links(service, address, {"http": 8000, "grpc": 8001}).items():
        monkeypatch.setenv(name, value)
    settings = load_settings(OvenSettings, dish="bread")
    assert (settings.port, settings.metrics_port) == (9, 0)


def test_a_persons_setting_stands_among_service_links(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in links("paceline-oven", "10.0.0.1", {"": 8001}).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PACELINE_OVEN_PORT", "8001")
    assert load_settings(OvenSettings, dish="bread").port == 8001


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PORT", "tcp://oven:8001"),
        ("PORT", "tcp://10.0.0.1"),
        ("PORT", "http://10.0.0.1:8001"),
        ("PORT", "10.0.0.1:8001"),
        ("METRICS_PORT", "tcp://oven:8001"),
        ("SERVICE_HOST", "oven"),
        ("SERVICE_PORT", "8001"),
        ("PORT_8001_TCP", "8001"),
        ("PORT_8001_TCP", "tcp://10.0.0.1:8002"),
        ("PORT_8001_TCP_PORT", "8002"),
        ("PORT_8001_TCP_ADDR", "oven"),
        ("PORT_8001_TCP_PROTO", "udp"),
        ("GRPC_PORT", "8001"),
    ],
)
def test_what_only_looks_like_a_service_link_stops_the_start(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(f"PACELINE_OVEN_{name}", value)
    with pytest.raises(SettingsError, match=f"PACELINE_OVEN_{name}"):
        load_settings(OvenSettings, dish="bread")


def command(started: list[OvenSettings]) -> click.Command:
    return service_command("oven", OvenSettings, lambda _: started.append, help="Bake.")


def test_the_command_takes_a_flag_per_field() -> None:
    started: list[OvenSettings] = []
    result = CliRunner().invoke(command(started), ["--dish", "bread", "--port", "7", "--log-format", "json"])
    assert result.exit_code == 0, result.output
    assert (started[0].dish, started[0].port, started[0].log_format) == ("bread", 7, "json")


def test_the_commands_help_tells_variable_and_default() -> None:
    text = " ".join(CliRunner().invoke(command([]), ["--help"]).output.split())
    for name in OvenSettings.model_fields:
        assert "--" + name.replace("_", "-") in text
        assert "PACELINE_OVEN_" + name.upper() in text
    assert "PACELINE_OVEN_PORT; default: 9" in text
    assert "PACELINE_OVEN_DISH; required" in text


def test_the_command_ends_with_two_and_names_the_setting() -> None:
    result = CliRunner().invoke(command([]), ["--dish", "bread", "--port", "x"])
    assert result.exit_code == 2
    assert "oven: --port (PACELINE_OVEN_PORT)" in result.output


@pytest.mark.parametrize("service", ["gateway", "verifier_svc", "drafter_svc"])
def test_a_real_service_does_not_start_with_a_bad_port(service: str) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", service, "--port", "65536"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == 2
    assert "--port" in ended.stderr
    assert "Traceback" not in ended.stderr
