"""Compose's files: as its specification has them, with settings that services know and files that exist."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from compose_spec import PyCompose

from drafter_svc.config import DrafterSettings
from gateway.config import GatewaySettings
from paceline import __version__
from paceline.service.settings import ServiceSettings, load_settings
from tests.images.checks import CheckError
from tests.images.compose_file import NEURAL, OWN, services, words
from verifier_svc.config import VerifierSettings

FOLDER = Path(__file__).parents[2] / "deploy"
FILES = ("compose.yaml", "compose.gpu.yaml", "compose.neural.yaml", "compose.neural-gpu.yaml")
SETTINGS: dict[str, type[ServiceSettings]] = {
    "gateway": GatewaySettings,
    "verifier": VerifierSettings,
    "drafter": DrafterSettings,
}


def read(name: str) -> dict[str, Any]:
    """A file with the defaults of its variables."""
    text = re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", (FOLDER / name).read_text())
    content: dict[str, Any] = yaml.safe_load(text)
    return content


SYSTEM = read("compose.yaml")
SERVICES: dict[str, dict[str, Any]] = SYSTEM["services"]


@pytest.mark.parametrize("name", FILES)
def test_it_is_a_compose_file(name: str) -> None:
    PyCompose.from_json(json.dumps(read(name))).validate()


def test_a_misspelt_key_is_refused() -> None:
    misspelt = {"services": {"gateway": {"image": "i", "helthcheck": {}}}}
    with pytest.raises(ValueError, match="helthcheck"):
        PyCompose.from_json(json.dumps(misspelt))


def settings_of(
    service: str, definition: Mapping[str, Any], monkeypatch: pytest.MonkeyPatch
) -> ServiceSettings:
    """A service's settings from a definition's variables alone. Raises `SettingsError`."""
    for name in [name for name in os.environ if name.startswith("PACELINE_")]:
        monkeypatch.delenv(name)
    for name, value in definition["environment"].items():
        monkeypatch.setenv(name, str(value))
    return load_settings(SETTINGS[service])


@pytest.mark.parametrize("service", SETTINGS)
def test_every_setting_is_one_of_the_service(service: str, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = settings_of(service, SERVICES[service], monkeypatch)
    # Where Prometheus looks for it, and the collector that is there.
    assert settings.metrics_port == 9400
    assert settings.otlp_endpoint == "collector:4317"


def test_a_drafter_with_a_model_takes_its_image_its_weights_and_their_volumes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given = {"PACELINE_DRAFT_MODEL": "/models/small", "PACELINE_KEEP_STATES": "eagle"}
    neural = services(given | {"PACELINE_MODEL": "/models/large"}, NEURAL)
    drafter = settings_of("drafter", neural["drafter"], monkeypatch)
    assert isinstance(drafter, DrafterSettings)
    assert (drafter.method, drafter.draft_model) == ("lookup+recycling+draft", "/models/small")
    assert drafter.model == "/models/large"
    verifier = settings_of("verifier", neural["verifier"], monkeypatch)
    assert isinstance(verifier, VerifierSettings)
    assert (verifier.model, verifier.keep_states) == ("/models/large", "eagle")
    without = settings_of("verifier", services({}, NEURAL)["verifier"], monkeypatch)
    assert isinstance(without, VerifierSettings)
    assert without.keep_states == ""
    assert neural["drafter"]["image"] == f"paceline-neural-drafter:{__version__}"
    # All of these hold what it reads and compiles; the rest is as without the file.
    assert {*neural["drafter"]["volumes"]} == {*neural["verifier"]["volumes"]}
    assert neural["drafter"]["read_only"] is True
    assert neural["gateway"] == services({"PACELINE_MODEL": "/models/large"})["gateway"]


def test_services_are_called_where_they_are() -> None:
    gateway = SERVICES["gateway"]["environment"]
    for service, port in (("verifier", 9000), ("drafter", 9100)):
        assert gateway[f"PACELINE_GATEWAY_{service.upper()}S"] == f"{service}:{port}"
        assert SETTINGS[service].model_fields["port"].default == port
    scraped = yaml.safe_load((FOLDER / "compose" / "prometheus.yaml").read_text())["scrape_configs"]
    targets = {target for job in scraped for static in job["static_configs"] for target in static["targets"]}
    assert targets == {f"{service}:9400" for service in SETTINGS}


def test_what_is_mounted_is_there() -> None:
    mounts = [mount.split(":") for service in SERVICES.values() for mount in service.get("volumes", ())]
    files = [source for source, *_ in mounts if source.startswith(".")]
    assert files
    for source in files:
        assert (FOLDER / source).exists(), source
    named = {source for source, *_ in mounts if not source.startswith(".")}
    assert named == set(SYSTEM["volumes"])
    # Prometheus and Grafana read all of a folder.
    assert list((FOLDER / "chart" / "rules").glob("*.yaml"))
    assert list((FOLDER / "chart" / "dashboards").glob("*.json"))


def test_images_are_of_one_version() -> None:
    for name, service in SERVICES.items():
        repository, _, tag = service["image"].rpartition(":")
        assert tag != "latest"
        if name in SETTINGS:
            assert (repository, tag) == (f"paceline-{name}", __version__)


def test_what_is_published_listens_on_the_loopback_interface() -> None:
    published = [port for service in SERVICES.values() for port in service.get("ports", ())]
    assert len(published) == 5
    assert all(port.startswith("127.0.0.1:") for port in published)


@pytest.mark.parametrize("service", [*SETTINGS, "redis"])
def test_services_may_do_nothing_but_serve(service: str) -> None:
    limits = SERVICES[service]
    assert limits["read_only"] is True
    assert limits["cap_drop"] == ["ALL"]
    assert limits["security_opt"] == ["no-new-privileges:true"]
    grace = SETTINGS.get(service, ServiceSettings).model_fields["grace_seconds"].default
    # It ends by itself before it is killed.
    assert int(limits["stop_grace_period"].removesuffix("s")) >= grace + 10


@pytest.mark.parametrize("service", OWN)
def test_the_check_of_compose_gives_podman_all_of_a_service(service: str) -> None:
    definition = services({"PACELINE_MODELS": "/home/models"})[service]
    flags = words(definition, {"redis": "redis-of-the-check"})
    assert {"--read-only", "--cap-drop=ALL", "--security-opt=no-new-privileges"} <= set(flags)
    for name, value in definition.get("environment", {}).items():
        assert f"--env={name}={value}" in flags
    assert definition["image"] in flags
    if service == "redis":
        assert '--entrypoint=["valkey-server"]' in flags
        assert "--volume=redis-of-the-check:/data" in flags
        assert flags[-2:] == ["--dir", "/data"]
    elif service == "gateway":
        assert "--volume=/home/models:/models:ro" in flags
        assert "--publish=127.0.0.1::8000" in flags


def test_the_check_of_compose_passes_over_no_key() -> None:
    with pytest.raises(CheckError, match="tmpfs"):
        words({"image": "image", "tmpfs": ["/tmp"]}, {})
