"""What a gateway can do with a pod, as its metrics say it."""

from __future__ import annotations

import pytest
from prometheus_client import REGISTRY

from gateway import fleet_metrics
from gateway.discovery import Endpoint, Endpoints
from gateway.fleet import Fleet
from gateway.fleet_metrics import State
from paceline.v1 import drafter_pb2, verifier_pb2


def count(role: str, state: State) -> float | None:
    return REGISTRY.get_sample_value("paceline:fleet_pods", {"role": role, "state": state.value})


@pytest.mark.parametrize(
    ("status", "state"),
    [
        (None, State.DOWN),
        (verifier_pb2.VerifierStatusResponse(), State.UP),
        (verifier_pb2.VerifierStatusResponse(draining=True), State.DRAINING),
        (verifier_pb2.VerifierStatusResponse(stalled=True), State.STALLED),
    ],
)
async def test_a_verifier_counts_under_what_it_last_said(
    status: verifier_pb2.VerifierStatusResponse | None, state: State
) -> None:
    fleet = Fleet(1.0)
    fleet.update(Endpoints.at(("127.0.0.1:1",), ()))
    fleet_metrics.export(fleet)
    if status is not None:
        fleet.verifiers["127.0.0.1:1"].heard(status)
    assert {each: count("verifier", each) for each in State} == {each: float(each is state) for each in State}
    await fleet.close()


async def test_one_that_fits_no_more_or_answers_no_more_is_told_apart() -> None:
    fleet = Fleet(1.0)
    fleet.update(Endpoints.at(("127.0.0.1:1",), ("127.0.0.1:2",)))
    fleet_metrics.export(fleet)
    verifier, drafter = fleet.verifiers["127.0.0.1:1"], fleet.drafters["127.0.0.1:2"]
    verifier.heard(verifier_pb2.VerifierStatusResponse())
    drafter.heard(drafter_pb2.DrafterStatusResponse())
    verifier.misfit = "another model"
    assert (count("verifier", State.MISFIT), count("drafter", State.UP)) == (1, 1)
    verifier.lost("gone")
    assert (count("verifier", State.MISFIT), count("verifier", State.DOWN)) == (0, 1)
    await fleet.close()


async def test_one_that_is_being_stopped_is_not_missed_when_it_answers_no_more() -> None:
    fleet = Fleet(1.0)
    fleet.update(Endpoints.at(("127.0.0.1:1",)))
    fleet_metrics.export(fleet)
    verifier = fleet.verifiers["127.0.0.1:1"]
    verifier.heard(verifier_pb2.VerifierStatusResponse())
    fleet.update(Endpoints((Endpoint("127.0.0.1:1", going=True),)))
    assert (count("verifier", State.UP), count("verifier", State.DRAINING)) == (0, 1)
    verifier.lost("gone")
    assert (count("verifier", State.DRAINING), count("verifier", State.DOWN)) == (1, 0)
    await fleet.close()


async def test_one_that_has_gone_is_counted_no_more() -> None:
    fleet = Fleet(1.0)
    fleet.update(Endpoints.at(("127.0.0.1:1", "127.0.0.1:2"), ("127.0.0.1:3",)))
    fleet_metrics.export(fleet)
    for verifier in fleet.verifiers.values():
        verifier.heard(verifier_pb2.VerifierStatusResponse())
    fleet.drafters["127.0.0.1:3"].heard(drafter_pb2.DrafterStatusResponse())
    assert (count("verifier", State.UP), count("drafter", State.UP)) == (2, 1)
    fleet.update(Endpoints.at(("127.0.0.1:2",)))
    assert {each: count("verifier", each) for each in State} == {
        each: float(each is State.UP) for each in State
    }
    assert {count("drafter", each) for each in State} == {0.0}
    await fleet.close()
