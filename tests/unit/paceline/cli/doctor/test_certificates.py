"""What the doctor says of certificates: in files, and shown by servers."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from paceline.cli.doctor import certificates
from paceline.cli.doctor.findings import Check, Level, Report
from paceline.net.roles import Role
from paceline.net.tls import Identity, PemFiles
from tests.certificates import DAY, Authority, Issued, Secret
from tests.doctor import Ill, examined, found, serving

GATEWAY, VERIFIER = Role.GATEWAY.dns_name, Role.VERIFIER.dns_name


def files(folder: Path, issued: Issued) -> PemFiles:
    secret = Secret(folder, issued)
    return PemFiles(secret.cert, secret.key, secret.ca, "tls")


@pytest.mark.parametrize(
    ("case", "level", "words"),
    [
        ("good", Level.OK, "valid until"),
        ("soon", Level.WARNING, "ends soon"),
        ("expired", Level.ERROR, "and not now"),
        ("role", Level.ERROR, "issue one with the DNS name paceline-role-gateway"),
        ("key", Level.ERROR, "does not belong to the certificate"),
        ("authority", Level.ERROR, "is not trusted by --tls-ca"),
        ("garbage", Level.ERROR, "holds no certificate in PEM"),
    ],
)
def test_files_are_judged_as_services_and_peers_judge_them(
    tmp_path: Path, case: str, level: Level, words: str
) -> None:
    authority = Authority()
    issued = authority.issue(GATEWAY, ends_in=90 * DAY)
    changed = {
        "good": issued,
        "soon": authority.issue(GATEWAY, ends_in=timedelta(hours=1)),
        "expired": authority.issue(GATEWAY, ends_in=-DAY),
        "role": authority.issue(VERIFIER, ends_in=90 * DAY),
        "key": Issued(issued.cert, authority.issue(GATEWAY).key, issued.ca),
        "authority": Issued(issued.cert, issued.key, Authority().pem),
        "garbage": Issued(b"nothing", issued.key, issued.ca),
    }[case]
    report = Report()
    sound = certificates.check(report, "gateway", files(tmp_path / "s", changed), Role.GATEWAY)
    (finding,) = report.findings
    assert (finding.level, sound) == (level, level is not Level.ERROR)
    assert words in finding.what


@pytest.fixture
def authority() -> Authority:
    return Authority()


async def seen(
    folder: Path, server: Issued | None, ours: Issued | None, server_role: Role | None = Role.VERIFIER
) -> list[Any]:
    """Findings about a verifier that shows `server`, asked by one who shows `ours`; None is plaintext."""
    identity = None if server is None else Identity(files(folder / "server", server), server_role)
    pem = None if ours is None else files(folder / "ours", ours)
    shown = {} if pem is None else {"cert": pem.cert, "key": pem.key, "trusted": pem.ca}
    async with serving(Ill(), only="verifier", identity=identity) as address:
        report = await examined(verifiers=(address,), **shown)
    subject = f"verifier {address}"
    return [each for each in report.findings if each.subject == subject and each.level is Level.ERROR]


async def test_pods_that_trust_one_another_answer(tmp_path: Path, authority: Authority) -> None:
    assert not await seen(tmp_path, authority.issue(VERIFIER), authority.issue(GATEWAY))


async def test_plaintext_and_tls_do_not_mix(tmp_path: Path, authority: Authority) -> None:
    (finding,) = await seen(tmp_path / "a", authority.issue(VERIFIER), None)
    assert "speaks TLS, and was spoken to in plaintext" in finding.what
    (finding,) = await seen(tmp_path / "b", None, authority.issue(GATEWAY))
    assert "speaks plaintext, and was spoken to in TLS" in finding.what


async def test_a_certificate_of_another_ca_is_told(tmp_path: Path, authority: Authority) -> None:
    # Each side trusts the CA of its own.
    (finding,) = await seen(tmp_path, authority.issue(VERIFIER), Authority().issue(GATEWAY))
    assert finding.check is Check.TLS
    assert "is not trusted here" in finding.what


async def test_a_certificate_that_the_server_refuses_is_told(tmp_path: Path, authority: Authority) -> None:
    stranger = Authority().issue(GATEWAY)
    ours = Issued(stranger.cert, stranger.key, stranger.ca + authority.pem)
    (finding,) = await seen(tmp_path, authority.issue(VERIFIER), ours)
    assert "refuses our certificate" in finding.what


async def test_a_server_of_another_role_is_told(tmp_path: Path, authority: Authority) -> None:
    (finding,) = await seen(tmp_path, authority.issue(GATEWAY), authority.issue(GATEWAY), None)
    assert "its certificate is for paceline-role-gateway, not for paceline-role-verifier" in finding.what


async def test_an_expired_certificate_of_a_server_is_told(
    tmp_path: Path, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A service does not start with one: it has outlived its certificate.
    monkeypatch.setattr("paceline.net.tls._check_time", lambda where, leaf: None)
    expired = authority.issue(VERIFIER, ends_in=-timedelta(hours=1))
    (finding,) = await seen(tmp_path, expired, authority.issue(GATEWAY))
    assert finding.check is Check.TLS
    assert "and not now" in finding.what


async def test_unusable_files_of_ours_are_told_and_nobody_is_asked_with_them(
    tmp_path: Path, authority: Authority
) -> None:
    pem = files(tmp_path / "s", authority.issue(GATEWAY, ends_in=-DAY))
    async with serving(Ill(), only="verifier") as address:
        report = await examined(verifiers=(address,), cert=pem.cert, key=pem.key, trusted=pem.ca)
    (finding,) = found(report, Check.TLS)
    assert "and not now" in finding.what
    assert f"verifier {address}" not in {each.subject for each in report.findings}
