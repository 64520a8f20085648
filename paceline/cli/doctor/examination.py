"""All checks in their order: what is set here, then the gateway, the pods, Redis."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from paceline.addresses import join_address, reachable
from paceline.cli.doctor import certificates, clock, configuration, fleet, gateway, pods
from paceline.cli.doctor.findings import Check, Report
from paceline.cli.doctor.handshake import Shown
from paceline.cli.gateway import DEFAULT_GATEWAY
from paceline.net.roles import Role
from paceline.net.tls import Identity, PemFiles
from paceline.service.settings import ServiceSettings, StoreSettings
from paceline.v1 import gateway_pb2


@dataclass(frozen=True, slots=True)
class Asked:
    """What the command line names. What it leaves out is taken from the settings in the environment."""

    # Empty where none is named.
    gateway: str
    tls: bool
    ca: Path | None
    api_key: str | None
    verifiers: tuple[str, ...]
    drafters: tuple[str, ...]
    redis_url: str | None
    cert: Path | None
    key: Path | None
    trusted: Path | None
    direct: bool


def examine(asked: Asked) -> Report:
    """Check everything."""
    report = Report()
    settings = configuration.check(report)
    identity, shown, sound = _certificates(report, asked, settings)
    asked = replace(asked, gateway=asked.gateway or _own_gateway(settings), direct=asked.direct and sound)
    named = {
        Role.VERIFIER: [*asked.verifiers, *_configured(settings, "verifier_addresses")],
        Role.DRAFTER: [*asked.drafters, *_configured(settings, "drafter_addresses")],
    }
    asyncio.run(_ask(report, asked, named, identity, shown))
    urls = {asked.redis_url} if asked.redis_url else _redis_urls(settings)
    for url in sorted(urls):
        asyncio.run(_check_redis(report, url))
    if not urls:
        report.note(
            Check.REDIS, "redis", "was not checked: no URL is known here", "give --redis-url or set REDIS_URL"
        )
    return report


async def _check_redis(report: Report, url: str) -> None:
    try:
        from paceline.cli.doctor import store
    except ModuleNotFoundError:
        report.note(
            Check.REDIS,
            "redis",
            "was not checked: the client of Redis is not installed here",
            "install paceline[gateway], or run this in a gateway's or a verifier's image",
        )
        return
    await store.check(report, url)


def _redis_urls(settings: Mapping[str, ServiceSettings]) -> set[str]:
    urls = {
        each.redis_url.get_secret_value() for each in settings.values() if isinstance(each, StoreSettings)
    }
    return urls - {""}


def _certificates(
    report: Report, asked: Asked, settings: Mapping[str, ServiceSettings]
) -> tuple[Identity | None, Shown | None, bool]:
    """What to show to pods, if anything, and whether it can be used."""
    files: list[tuple[str, PemFiles, Role | None]] = []
    if asked.cert is not None and asked.key is not None:
        files.append(("command line", PemFiles(asked.cert, asked.key, asked.trusted, "tls"), None))
    for name, each in settings.items():
        if each.tls_cert is not None and each.tls_key is not None:
            files.append((name, PemFiles(each.tls_cert, each.tls_key, each.tls_ca, "tls"), Role(name)))
    sound = [certificates.check(report, name, pem, role) for name, pem, role in files]
    for name, each in settings.items():
        cert, key = getattr(each, "public_tls_cert", None), getattr(each, "public_tls_key", None)
        if cert is not None and key is not None:
            certificates.check(report, name, PemFiles(cert, key, None, "public-tls"), None)
    if not files:
        return None, None, True
    if not sound[0]:
        return None, None, False
    pem = files[0][1]
    return Identity(pem), Shown(pem.ca, pem.cert, pem.key), True


def _own_gateway(settings: Mapping[str, ServiceSettings]) -> str:
    """Where a gateway with these settings is reached from its own pod."""
    own = settings.get("gateway")
    return DEFAULT_GATEWAY if own is None else join_address(reachable(own.host), int(getattr(own, "port", 0)))


def _configured(settings: Mapping[str, ServiceSettings], name: str) -> Sequence[str]:
    """Addresses of pods in a gateway's settings."""
    addresses: Sequence[str] = getattr(settings.get("gateway"), name, ())
    return addresses


async def _ask(
    report: Report,
    asked: Asked,
    named: Mapping[Role, Sequence[str]],
    identity: Identity | None,
    shown: Shown | None,
) -> None:
    """Ask the gateway, and the pods that it tells of and that are `named`."""
    told = await gateway.check(report, asked.gateway, tls=asked.tls, ca=asked.ca, api_key=asked.api_key)
    if told is None:
        told = gateway_pb2.FleetResponse()
    else:
        fleet.check_seen(report, told)
        fleet.check_served(report, told)
    statuses: dict[Role, dict[str, Any]] = {
        Role.VERIFIER: {
            pod.address: pod.status for pod in told.verifiers if pod.healthy or pod.status.stalled
        },
        Role.DRAFTER: {pod.address: pod.status for pod in told.drafters if pod.healthy},
    }
    if asked.direct:
        for role, seen in ((Role.VERIFIER, told.verifiers), (Role.DRAFTER, told.drafters)):
            addresses = dict.fromkeys([*(pod.address for pod in seen), *named[role]])
            statuses[role].update(await pods.check(report, role, addresses, identity, shown))
    else:
        for role, answers in statuses.items():
            for address, status in answers.items():
                clock.check_told(report, f"{role} {address}", status.clock_seconds, told.clock_seconds)
    fleet.check_verifiers(report, statuses[Role.VERIFIER])
    speakers = {
        f"{role} {address}": each for role, some in statuses.items() for address, each in some.items()
    }
    if told.protocol_version or told.verifiers:
        speakers = {f"gateway {asked.gateway}": told, **speakers}
    fleet.check_versions(report, speakers)
