"""The settings of services that this environment holds: whether they would start, and fit one another."""

from __future__ import annotations

import os
from collections.abc import Mapping
from importlib.metadata import entry_points

from paceline.addresses import is_loopback
from paceline.cli.doctor.findings import Check, Report
from paceline.service.service_links import is_service_link
from paceline.service.settings import (
    MissingSettingError,
    ServiceCommand,
    ServiceSettings,
    SettingsError,
    StoreSettings,
    load_settings,
)

# Where gateways and verifiers of one fleet must agree.
_SHARED = ("redis_url", "durability", "model_name")


def check(report: Report) -> dict[str, ServiceSettings]:
    """Settings by service, of those that are set here and would start."""
    found: dict[str, ServiceSettings] = {}
    for name, settings_type in _types().items():
        try:
            settings = load_settings(settings_type)
        except MissingSettingError as error:
            for line in str(error).splitlines():
                report.note(Check.CONFIGURATION, name, line, "ignore this if the service gets it as a flag")
        except SettingsError as error:
            for line in str(error).splitlines():
                report.error(Check.CONFIGURATION, name, line, "correct it: the service does not start")
        else:
            report.ok(Check.CONFIGURATION, name, "its settings in the environment are sound")
            found[name] = settings
            _check_one(name, settings, report)
    _check_together(found, report)
    return found


def _types() -> Mapping[str, type[ServiceSettings]]:
    """The settings types of services that are installed here and have a variable in the environment."""
    types: dict[str, type[ServiceSettings]] = {}
    for entry in sorted(entry_points(group="paceline.commands"), key=lambda found: found.name):
        prefix = f"PACELINE_{entry.name.upper()}_"
        if not any(name.startswith(prefix) and not is_service_link(name, os.environ) for name in os.environ):
            continue
        try:
            command = entry.load()
        except ModuleNotFoundError:  # an image holds one service only
            continue
        if isinstance(command, ServiceCommand):
            types[entry.name] = command.settings_type
    return types


def _check_one(name: str, settings: ServiceSettings, report: Report) -> None:
    if settings.tls_cert is None and not is_loopback(settings.host):
        report.warning(
            Check.CONFIGURATION,
            name,
            f"listens on {settings.host} without TLS: whoever reaches it can call it",
            "set --tls-cert, --tls-key and --tls-ca at all services, or let a network policy keep others out",
        )
    if isinstance(settings, StoreSettings) and not settings.redis_url.get_secret_value():
        report.warning(
            Check.CONFIGURATION,
            name,
            "has no --redis-url: sessions are lost with their process",
            "give gateways and verifiers the URL of one Redis",
        )
    if getattr(settings, "api_keys_file", None) == "":
        report.note(
            Check.CONFIGURATION,
            name,
            "has no --api-keys-file: everybody is served",
            "see `paceline key create`",
        )
    if str(getattr(settings, "device", "")).startswith("cuda") and not _sees_gpu():
        report.error(
            Check.DEVICE,
            name,
            f"--device {getattr(settings, 'device', '')}, and no NVIDIA device is here",
            "give the container a GPU (nvidia.com/gpu), or set --device auto",
        )


def _sees_gpu() -> bool:
    return os.path.exists("/dev/nvidiactl") or os.path.exists("/dev/dxg")


def _check_together(found: Mapping[str, ServiceSettings], report: Report) -> None:
    gateway, verifier = found.get("gateway"), found.get("verifier")
    if gateway is None or verifier is None:
        return
    for name in _SHARED:
        one, other = getattr(gateway, name, None), getattr(verifier, name, None)
        if one != other:
            flag = "--" + name.replace("_", "-")
            report.error(
                Check.CONFIGURATION,
                "gateway and verifier",
                f"have different {flag}",
                f"give both the same {flag}",
            )
