"""What the statuses of a fleet say together: health, versions, model and vocabulary, devices."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from paceline import __version__
from paceline.cli.doctor.findings import Check, Report
from paceline.net.handshake import PROTOCOL_VERSION, SPOKEN_VERSIONS
from paceline.v1 import gateway_pb2


def check_seen(report: Report, fleet: gateway_pb2.FleetResponse) -> None:
    """Whether the gateway can use its pods."""
    if not fleet.verifiers:
        report.error(
            Check.REACHABILITY,
            "gateway",
            "knows of no verifier: it serves nobody",
            "start verifiers, and look at its --verifiers and --discovery",
        )
    if not fleet.drafters:
        report.note(Check.REACHABILITY, "gateway", "knows of no drafter: decoding is plain", "start drafters")
    for kind, pods in (("verifier", fleet.verifiers), ("drafter", fleet.drafters)):
        for pod in pods:
            if not pod.healthy and not getattr(pod.status, "stalled", False):
                report.error(
                    Check.REACHABILITY,
                    f"{kind} {pod.address}",
                    "the gateway gets no answer of it",
                    "look whether it runs, and whether the gateway may reach it (network policy, TLS)",
                )
    for pod in fleet.drafters:
        if pod.healthy and pod.status.sessions and not pod.status.verifiers:
            report.error(
                Check.REACHABILITY,
                f"drafter {pod.address}",
                "has sessions and is connected to no verifier",
                "let drafters reach verifiers at the addresses that the gateway uses (network policy, TLS)",
            )


def check_served(report: Report, fleet: gateway_pb2.FleetResponse) -> None:
    """Whether gateway and verifiers serve the same model with the same vocabulary."""
    for pod in fleet.verifiers:
        subject = f"verifier {pod.address}"
        if pod.misfit:
            what, _, do = pod.misfit.partition(": ")
            report.error(
                Check.VOCABULARY, subject, f"gets no sessions: {what}", do or "give both the same model"
            )
        elif pod.status.model_id:
            report.ok(
                Check.VOCABULARY, subject, f"serves {pod.status.model_id} with the gateway's vocabulary"
            )


def check_verifiers(report: Report, statuses: Mapping[str, Any]) -> None:
    """The verifiers' own words: devices, hangs, vocabularies, drafters that were put aside."""
    kinds = Counter(status.device for status in statuses.values())
    for address, status in statuses.items():
        subject = f"verifier {address}"
        if status.stalled:
            report.error(
                Check.DEVICE,
                subject,
                "its engine has done nothing for ten seconds: it hangs",
                "restart it; its log, and the device's (dmesg, nvidia-smi), say why",
            )
        else:
            report.ok(Check.DEVICE, subject, f"computes on {status.device}")
        if len(kinds) > 1 and status.device.startswith("cpu") and _some_gpu(kinds):
            report.warning(
                Check.DEVICE,
                subject,
                "computes on the CPU beside verifiers with GPUs",
                "give it a GPU (nvidia.com/gpu), or --device cuda, with which it does not start without one",
            )
        if status.drafters_aside:
            report.warning(
                Check.REACHABILITY,
                subject,
                f"does not listen to {len(status.drafters_aside)} drafters: {status.drafters_aside[0]} ...",
                "look at its log for why, and at paceline:drafters_put_aside",
            )
    _check_vocabularies(report, statuses)


def _check_vocabularies(report: Report, statuses: Mapping[str, Any]) -> None:
    """Verifiers of one model must have one vocabulary, whatever a gateway knows of them."""
    models: dict[str, set[str]] = {}
    for status in statuses.values():
        models.setdefault(status.model_id, set()).add(status.vocab_fingerprint)
    for model, fingerprints in models.items():
        if len(fingerprints) > 1:
            report.error(
                Check.VOCABULARY,
                "verifiers",
                f"serve {model!r} with {len(fingerprints)} vocabularies",
                "give all verifiers of a model the same --model",
            )


def _some_gpu(kinds: Counter[str]) -> bool:
    return any(device.startswith("cuda") for device in kinds)


def check_versions(report: Report, speakers: Mapping[str, Any]) -> None:
    """`speakers`: whoever told its version, by name."""
    for name, status in speakers.items():
        if not status.protocol_version:
            report.warning(
                Check.VERSIONS,
                name,
                "does not tell its version: it is of an earlier release",
                "bring all pods to one release",
            )
        elif status.protocol_version not in SPOKEN_VERSIONS:
            report.error(
                Check.VERSIONS,
                name,
                f"speaks version {status.protocol_version} of the protocol, this release {PROTOCOL_VERSION}",
                "bring all pods to one release",
            )
        elif status.protocol_version != PROTOCOL_VERSION:
            report.warning(
                Check.VERSIONS,
                name,
                f"speaks version {status.protocol_version} of the protocol, this release {PROTOCOL_VERSION}: "
                "both work, without hidden states and sources of nodes",
                "bring all pods to one release",
            )
        else:
            report.ok(Check.VERSIONS, name, f"Paceline {status.version}")
    releases = {status.version for status in speakers.values() if status.version} | {__version__}
    if len(releases) > 1:
        report.warning(
            Check.VERSIONS,
            "fleet",
            f"several releases: {', '.join(sorted(releases))} (this command is {__version__})",
            "let the upgrade come to its end; releases side by side are for that time only",
        )
