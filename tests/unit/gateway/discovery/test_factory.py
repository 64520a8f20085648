"""How a gateway is told to find its pods."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from gateway.config import GatewaySettings
from gateway.discovery import StaticDiscovery
from gateway.discovery.dns import DnsDiscovery
from gateway.discovery.factory import cluster_of, discovery_of
from paceline.service.settings import SettingsError, load_settings


def settings(**given: Any) -> GatewaySettings:
    return load_settings(GatewaySettings, model="m", **given)


def test_a_list_and_names() -> None:
    listed, named = settings(verifiers="v:1"), settings(verifiers="v:1", discovery="dns")
    assert isinstance(discovery_of(listed, cluster_of(listed)), StaticDiscovery)
    assert isinstance(discovery_of(named, cluster_of(named)), DnsDiscovery)


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({}, "--verifiers names no address"),
        ({"discovery": "dns", "drafters": "d:1"}, "--verifiers names no address"),
        ({"discovery": "kubernetes", "drafters": "d:1"}, "--discovery kubernetes finds all pods"),
        ({"discovery": "zookeeper", "verifiers": "v:1"}, "--discovery"),
    ],
)
def test_what_cannot_be_is_refused_at_the_start(given: dict[str, str], why: str) -> None:
    with pytest.raises(SettingsError, match=why):
        settings(**given)


@pytest.mark.parametrize("text", [None, "clusters: nothing", "{"])
def test_without_a_way_to_the_api_server_it_says_so(tmp_path: Path, text: str | None) -> None:
    kubeconfig = None
    if text is not None:
        kubeconfig = tmp_path / "config"
        kubeconfig.write_text(text)
    with pytest.raises(SettingsError, match="--discovery kubernetes: no way to the API server: "):
        cluster_of(settings(discovery="kubernetes", kubeconfig=kubeconfig))


def test_the_client_of_kubernetes_is_imported_only_where_it_is_chosen() -> None:
    code = "import sys, gateway.service; sys.exit('kubernetes' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
