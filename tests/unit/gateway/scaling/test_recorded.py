"""Recommendations for a load that was recorded: a real fleet's counts, while clients came and went."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import REGISTRY

from gateway.scaling.autoscaler import Autoscaler
from gateway.scaling.observation import Tier
from gateway.scaling.policy import Policy
from tests.unit.gateway.scaling.fleets import FakeDrafter, FakeFleet, FakeVerifier

RECORDED = Path(__file__).with_name("recorded.json")
# As much shorter than its defaults as the recording is than a day.
POLICY = Policy(out_seconds=3.0, in_seconds=15.0)


@dataclass
class Told:
    """What was recommended, second by second, and what the load needed."""

    clients: list[int] = field(default_factory=list)
    replicas: dict[Tier, list[int]] = field(default_factory=lambda: {tier: [] for tier in Tier})
    needed: dict[Tier, list[float]] = field(default_factory=lambda: {tier: [] for tier in Tier})

    def changes(self, tier: Tier) -> list[tuple[int, int, int]]:
        """When the number changed, from and to."""
        counts = self.replicas[tier]
        return [
            (at, before, after) for at, (before, after) in enumerate(pairwise(counts), 1) if before != after
        ]

    def while_clients_are(self, count: int, tier: Tier) -> set[int]:
        """The numbers recommended in the last ten seconds of that many clients."""
        last = max(at for at, clients in enumerate(self.clients) if clients == count)
        return set(self.replicas[tier][last - 10 : last + 1])


@pytest.fixture(scope="module")
def told() -> Told:
    recorded = json.loads(RECORDED.read_text())
    _, _, of_verifier, of_drafter = recorded["columns"]
    verifier, drafter, told = FakeVerifier(), FakeDrafter(), Told()
    verifier.status.max_sessions, verifier.status.full_rows, verifier.status.kv_total = 8, 96, 131072
    fleet, now = FakeFleet({"v": verifier}, {"d": drafter}), [0.0, 0.0]
    scaler = Autoscaler(fleet, POLICY, queued=lambda: now[1], seconds=1.0, clock=lambda: now[0])
    for clients, queued, verifier_says, drafter_says in recorded["seconds"]:
        now[:] = now[0] + 1.0, queued
        verifier.status = _said(verifier.status, of_verifier, verifier_says)
        drafter.status = _said(drafter.status, of_drafter, drafter_says)
        scaler.look()
        told.clients.append(clients)
        for tier in Tier:
            told.replicas[tier].append(scaler.recommendation(tier, "default").replicas)
            labels = {"tier": tier, "pool": "default"}
            told.needed[tier].append(REGISTRY.get_sample_value("paceline:needed_replicas", labels) or 0.0)
    return told


def _said(before: Any, names: list[str], values: list[float]) -> Any:
    status = type(before)()
    status.CopyFrom(before)
    for name, value in zip(names, values, strict=True):
        setattr(status, name, value)
    return status


def test_verifiers_follow_the_sessions_and_those_who_wait(told: Told) -> None:
    # One has eight places: six clients fit, twelve do not.
    assert told.while_clients_are(6, Tier.VERIFIER) == {1}
    assert told.while_clients_are(12, Tier.VERIFIER) == {2}
    assert told.replicas[Tier.VERIFIER][-1] == 1


def test_drafters_go_to_zero_between_clients_and_return(told: Told) -> None:
    counts = told.replicas[Tier.DRAFTER]
    gap = [at for at, clients in enumerate(told.clients) if clients == 0 and at > 20]
    assert counts[gap[0]] >= 1
    assert 0 in (counts[at] for at in gap)
    assert told.while_clients_are(2, Tier.DRAFTER) <= {1, 2}


@pytest.mark.parametrize("tier", Tier)
def test_nothing_is_scaled_in_below_what_the_window_needed(told: Told, tier: Tier) -> None:
    for at, before, after in told.changes(tier):
        if after < before:
            window = sorted(told.needed[tier][at - int(POLICY.in_seconds) + 1 : at + 1])
            assert sum(needed <= after + 1e-6 for needed in window) >= 0.95 * len(window)


@pytest.mark.parametrize("tier", Tier)
def test_nothing_flaps(told: Told, tier: Tier) -> None:
    changes = told.changes(tier)
    outs = [at for at, before, after in changes if after > before]
    ins = [at for at, before, after in changes if after < before]
    assert all(scaled_in - out >= POLICY.in_seconds for scaled_in in ins for out in outs if out <= scaled_in)
    # Clients came more often than pods did.
    assert len(outs) <= 4


@pytest.mark.parametrize("tier", Tier)
def test_what_is_needed_is_there_within_the_tolerance(told: Told, tier: Tier) -> None:
    for replicas, needed in zip(told.replicas[tier], told.needed[tier], strict=True):
        assert needed <= replicas * (1 + POLICY.tolerance) + 1e-6
