"""What the doctor says of pods that are ill: real calls, scripted answers."""

from __future__ import annotations

import socket

import pytest

from paceline.addresses import parse_address
from paceline.cli.doctor.findings import Check, Level
from paceline.v1 import gateway_pb2
from tests.doctor import NOWHERE, Ill, examined, found, serving


async def test_pods_that_are_well_give_no_errors() -> None:
    ill = Ill()
    async with serving(ill) as address:
        ill.fleet.verifiers.add(address=address, healthy=True, status=ill.verifier())
        report = await examined(gateway=address, drafters=(address,))
    assert report.healthy
    assert not [each for each in report.findings if each.level is Level.WARNING]
    assert {each.check for each in report.findings} == {
        Check.REACHABILITY,
        Check.VERSIONS,
        Check.VOCABULARY,
        Check.DEVICE,
        Check.CLOCK,
        Check.REDIS,
    }


async def test_a_gateways_own_settings_say_where_it_listens(monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving(Ill()) as address:
        _, port = parse_address(address)
        for name, value in (("MODEL", "m"), ("VERIFIERS", address), ("PORT", str(port))):
            monkeypatch.setenv(f"PACELINE_GATEWAY_{name}", value)
        report = await examined(gateway="")
    answered = {each.subject for each in report.findings if each.what == "answers"}
    assert answered == {f"gateway {address}", f"verifier {address}"}


async def test_where_nobody_listens_is_said() -> None:
    report = await examined(verifiers=(NOWHERE,))
    said = found(report, Check.REACHABILITY)
    assert [each.subject for each in said] == [f"gateway {NOWHERE}", f"verifier {NOWHERE}"]
    assert all("nothing listens there" in each.what and "start it" in each.do for each in said)
    assert not report.healthy


async def test_an_unknown_name_is_told_from_a_closed_port() -> None:
    (gateway, *_) = found(await examined(gateway="no-such-host.invalid:8001"), Check.REACHABILITY)
    assert "the name no-such-host.invalid is not known" in gateway.what


async def test_another_service_at_the_address_is_recognised() -> None:
    async with serving(Ill(), only="drafter") as address:
        report = await examined(gateway=address, verifiers=(address,))
    assert [each.what for each in found(report, Check.REACHABILITY)] == ["is no gateway", "is no verifier"]


async def test_something_that_speaks_another_protocol_is_not_taken_for_a_pod() -> None:
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        address = f"127.0.0.1:{deaf.getsockname()[1]}"
        report = await examined(verifiers=(address,))
    assert found(report, Check.REACHABILITY, Level.ERROR)[1].subject == f"verifier {address}"


@pytest.mark.parametrize(
    ("clock", "level"), [(0.0, Level.OK), (3.0, Level.WARNING), (-60.0, Level.ERROR), (60.0, Level.ERROR)]
)
async def test_a_clock_that_is_off_is_told_by_how_much(clock: float, level: Level) -> None:
    ill = Ill()
    ill.clock = clock
    async with serving(ill) as address:
        report = await examined(gateway=address, verifiers=(address,), drafters=(address,))
    said = [each for each in report.findings if each.check is Check.CLOCK]
    assert [each.level for each in said] == [level] * 3
    if clock:
        direction = "ahead of" if clock > 0 else "behind"
        assert all(f"{abs(clock):.1f} s {direction}" in each.what and "NTP" in each.do for each in said)


@pytest.mark.parametrize(
    ("clock", "level"),
    [(0.0, Level.OK), (-50.0, Level.OK), (3.5, Level.WARNING), (30.5, Level.ERROR), (-70.5, Level.ERROR)],
)
async def test_pods_clocks_are_seen_through_the_gateway_too(clock: float, level: Level) -> None:
    """By an answer that may be some seconds old."""
    ill = Ill()
    async with serving(ill) as address:
        status = ill.verifier()
        status.clock_seconds += clock
        ill.fleet.verifiers.add(address="v:1", healthy=True, status=status)
        report = await examined(gateway=address, direct=False)
    (said,) = [
        each for each in report.findings if (each.check, each.subject) == (Check.CLOCK, "verifier v:1")
    ]
    assert said.level is level


async def test_another_protocol_is_an_error_and_another_release_a_warning() -> None:
    newer, older, silent = Ill(), Ill(), Ill()
    newer.status = {"protocol_version": 99, "version": "99.0"}
    older.status = {"protocol_version": 1}
    silent.status = {"protocol_version": 0, "version": ""}
    async with serving(newer) as one, serving(older) as two, serving(silent) as three:
        report = await examined(gateway=one, verifiers=(one, two, three))
    (error,) = found(report, Check.VERSIONS, Level.ERROR)
    assert error.subject == f"verifier {one}"
    assert "speaks version 99 of the protocol" in error.what
    spoken, old, several = found(report, Check.VERSIONS, Level.WARNING)
    assert (spoken.subject, old.subject, several.subject) == (f"verifier {two}", f"verifier {three}", "fleet")
    assert "speaks version 1 of the protocol, this release 2: both work" in spoken.what
    assert "99.0" in several.what


async def test_verifiers_of_different_vocabularies_and_devices_are_told() -> None:
    one, other = Ill(), Ill()
    other.status = {"vocab_fingerprint": "g", "device": "cuda:0 bfloat16"}
    async with serving(one) as a, serving(other) as b:
        report = await examined(gateway=a, verifiers=(a, b))
    (error,) = found(report, Check.VOCABULARY, Level.ERROR)
    assert "2 vocabularies" in error.what
    (warning,) = found(report, Check.DEVICE)
    assert warning.subject == f"verifier {a}"
    assert "computes on the CPU beside verifiers with GPUs" in warning.what


async def test_an_engine_that_hangs_is_an_error() -> None:
    ill = Ill()
    ill.status = {"stalled": True}
    async with serving(ill) as address:
        report = await examined(gateway=address, verifiers=(address,))
    (error,) = found(report, Check.DEVICE)
    assert error.level is Level.ERROR
    assert "it hangs" in error.what


async def test_what_the_gateway_sees_is_told_also_where_pods_are_not_asked() -> None:
    ill = Ill()
    ill.fleet = gateway_pb2.FleetResponse(
        verifiers=[
            gateway_pb2.VerifierPod(address="v:1", healthy=False),
            gateway_pb2.VerifierPod(address="v:2", healthy=True, misfit="it serves another: give both one"),
        ],
        drafters=[gateway_pb2.DrafterPod(address="d:1", healthy=True)],
    )
    ill.fleet.drafters[0].status.sessions = 2
    async with serving(ill) as address:
        report = await examined(gateway=address, direct=False)
    gone, unconnected = found(report, Check.REACHABILITY)
    assert (gone.subject, unconnected.subject) == ("verifier v:1", "drafter d:1")
    assert "connected to no verifier" in unconnected.what
    (misfit,) = found(report, Check.VOCABULARY)
    assert (misfit.what, misfit.do) == ("gets no sessions: it serves another", "give both one")


async def test_a_gateway_without_pods_serves_nobody() -> None:
    async with serving(Ill()) as address:
        none, plain = found(await examined(gateway=address), Check.REACHABILITY)
    assert (none.level, plain.level) == (Level.ERROR, Level.NOTE)
