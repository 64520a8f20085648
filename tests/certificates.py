"""Certificates of a test: a CA of its own, and folders that change as a mounted Kubernetes secret does."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

DAY = timedelta(days=1)
# What a certificate for clients on this machine is for.
LOCAL = ("localhost", "127.0.0.1")
_numbers = itertools.count()


@dataclass(frozen=True)
class Issued:
    """A certificate with its key, and the CA that issued it; all in PEM."""

    cert: bytes
    key: bytes
    ca: bytes


class Authority:
    """A CA."""

    def __init__(self) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"test CA {next(_numbers)}")])
        self._certificate = (
            _builder(name, name, self._key.public_key(), DAY)
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .sign(self._key, hashes.SHA256())
        )
        self.pem = self._certificate.public_bytes(Encoding.PEM)

    def issue(self, *names: str, ends_in: timedelta = DAY) -> Issued:
        """A certificate for DNS names and IP addresses."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "a pod")])
        certificate = (
            _builder(subject, self._certificate.subject, key.public_key(), ends_in)
            .add_extension(x509.SubjectAlternativeName([_general(name) for name in names]), critical=False)
            .sign(self._key, hashes.SHA256())
        )
        pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        return Issued(certificate.public_bytes(Encoding.PEM), pem, self.pem)


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, ends_in: timedelta
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - 2 * DAY)
        .not_valid_after(now + ends_in)
    )


def _general(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ip_address(name))
    except ValueError:
        return x509.DNSName(name)


class Secret:
    """A folder with `tls.crt`, `tls.key` and `ca.crt`, swapped at once by a link, as the kubelet does it."""

    def __init__(self, folder: Path, issued: Issued) -> None:
        folder.mkdir(parents=True)
        self._folder = folder
        self._versions = itertools.count()
        self.put(issued)
        for name in ("tls.crt", "tls.key", "ca.crt"):
            (folder / name).symlink_to(Path("..data") / name)
        self.cert, self.key, self.ca = folder / "tls.crt", folder / "tls.key", folder / "ca.crt"

    def put(self, issued: Issued) -> None:
        """Replace what is there."""
        self.put_bytes(issued.cert, issued.key, issued.ca)

    def put_bytes(self, cert: bytes, key: bytes, ca: bytes) -> None:
        """Replace what is there, whether it makes sense or not."""
        version = self._folder / f"..{next(self._versions)}"
        version.mkdir()
        for name, content in (("tls.crt", cert), ("tls.key", key), ("ca.crt", ca)):
            (version / name).write_bytes(content)
        link = self._folder / "..new"
        link.symlink_to(version.name)
        link.rename(self._folder / "..data")

    def flags(self, prefix: str = "tls", *, ca: bool = True) -> Sequence[str]:
        """The settings that name its files."""
        flags = [f"--{prefix}-cert", str(self.cert), f"--{prefix}-key", str(self.key)]
        return [*flags, f"--{prefix}-ca", str(self.ca)] if ca else flags
