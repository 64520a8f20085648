"""Identities: what is refused at the start, and what happens to files that change."""

from __future__ import annotations

import ssl
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)

from paceline.net.roles import Role
from paceline.net.tls import Identity, PemFiles, TlsError
from tests.certificates import Authority, Issued, Secret

VERIFIER = Role.VERIFIER.dns_name


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority()


def identity(secret: Secret) -> Identity:
    return Identity(PemFiles(secret.cert, secret.key, secret.ca, "tls"), Role.VERIFIER)


def test_good_files_are_taken(authority: Authority, tmp_path: Path) -> None:
    issued = authority.issue("pod-1.example", VERIFIER)
    current = identity(Secret(tmp_path / "s", issued)).current
    assert (current.chain, current.key, current.ca) == (issued.cert, issued.key, issued.ca)


def encrypted(key: bytes) -> bytes:
    return load_pem_private_key(key, None).private_bytes(
        Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"word")
    )


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("another role", r"--tls-cert .* is for paceline-role-drafter; .* paceline-role-verifier"),
        ("expired", r"--tls-cert .* is valid from .* and not now; issue a new one"),
        ("another key", r"--tls-key .* does not belong to the certificate in "),
        ("encrypted key", r"--tls-key .* is encrypted; give a key without a password"),
        ("no certificate", r"--tls-cert .* holds no certificate in PEM"),
        ("no key", r"--tls-key .* holds no private key in PEM"),
        ("no ca", r"--tls-ca .* holds no certificate in PEM"),
    ],
)
def test_what_cannot_be_used_is_named_with_what_to_do(
    authority: Authority, tmp_path: Path, fault: str, message: str
) -> None:
    good = authority.issue(VERIFIER)
    bad = {
        "another role": authority.issue(Role.DRAFTER.dns_name),
        "expired": authority.issue(VERIFIER, ends_in=timedelta(seconds=-1)),
        "another key": Issued(good.cert, authority.issue(VERIFIER).key, good.ca),
        "encrypted key": Issued(good.cert, encrypted(good.key), good.ca),
        "no certificate": Issued(b"nothing", good.key, good.ca),
        "no key": Issued(good.cert, good.cert, good.ca),
        "no ca": Issued(good.cert, good.key, b""),
    }[fault]
    with pytest.raises(TlsError, match=message):
        identity(Secret(tmp_path / "s", bad))


def test_a_missing_file_is_named(authority: Authority, tmp_path: Path) -> None:
    secret = Secret(tmp_path / "s", authority.issue(VERIFIER))
    secret.key.unlink()
    with pytest.raises(TlsError, match=r"--tls-key .*tls.key: No such file"):
        identity(secret)


def test_changed_files_are_taken_and_broken_ones_are_not(authority: Authority, tmp_path: Path) -> None:
    secret = Secret(tmp_path / "s", authority.issue(VERIFIER))
    held = identity(secret)
    first = held.current
    held.refresh()
    assert held.current is first
    second = authority.issue(VERIFIER)
    secret.put(second)
    held.refresh()
    assert held.current.chain == second.cert
    for broken in (
        Issued(b"-----BEGIN CERTIFICATE-----\n", second.key, second.ca),
        Issued(second.cert, authority.issue(VERIFIER).key, second.ca),
        authority.issue(VERIFIER, ends_in=timedelta(seconds=-1)),
        authority.issue(Role.GATEWAY.dns_name),
    ):
        secret.put(broken)
        held.refresh()
        assert held.current.chain == second.cert
    third = authority.issue(VERIFIER)
    secret.put(third)
    held.refresh()
    assert held.current.chain == third.cert


def test_https_shows_the_certificate_of_the_moment(authority: Authority, tmp_path: Path) -> None:
    secret = Secret(tmp_path / "s", authority.issue("a.example"))
    held = Identity(PemFiles(secret.cert, secret.key, None, "public-tls"))
    server = held.https_context()
    trusting = ssl.create_default_context(cadata=authority.pem.decode())
    assert shown(server, trusting, "a.example") == [("DNS", "a.example")]
    secret.put(authority.issue("a.example", "b.example"))
    held.refresh()
    assert shown(server, trusting, "b.example") == [("DNS", "a.example"), ("DNS", "b.example")]


def shown(server: ssl.SSLContext, client: ssl.SSLContext, name: str) -> list[tuple[str, str]]:
    """The names of the certificate that the client sees; the handshake goes through memory."""
    there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
    asking = client.wrap_bio(back, there, server_hostname=name)
    answering = server.wrap_bio(there, back, server_side=True)
    done = False
    while not done:
        done = True
        for side in (asking, answering):
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                done = False
    seen: Any = asking.getpeercert()
    return list(seen["subjectAltName"])
