"""Files of certificates: whether they can be used, whether the chain holds, how long they are valid."""

from __future__ import annotations

import ssl
from datetime import UTC, datetime, timedelta

from cryptography import x509

from paceline.cli.doctor.findings import Check, Report
from paceline.net.roles import Role
from paceline.net.tls import PemFiles, TlsError, read_files

# A certificate with less than this left is near its end; of a short-lived one, this share.
_NEAR, _NEAR_SHARE = timedelta(days=7), 0.1


def check(report: Report, subject: str, files: PemFiles, role: Role | None) -> bool:
    """Whether the files can be used. `role`: what the certificate must give; None asks for none."""
    try:
        read = read_files(files, role)
    except TlsError as error:
        report.error(
            Check.TLS, subject, str(error), "until then the service does not start, or keeps the old"
        )
        return False
    if files.ca is not None and (problem := _chain_problem(files)):
        report.error(
            Check.TLS,
            subject,
            f"{files.flag('cert')} {files.cert} is not trusted by {files.flag('ca')} {files.ca}: {problem}",
            "have a CA of that file issue it, and put CAs between the two behind it in its file",
        )
        return False
    leaf = x509.load_pem_x509_certificates(read.chain)[0]
    left = leaf.not_valid_after_utc - datetime.now(UTC)
    whole = leaf.not_valid_after_utc - leaf.not_valid_before_utc
    until = f"valid until {leaf.not_valid_after_utc:%Y-%m-%d %H:%M} UTC"
    if left < min(_NEAR, _NEAR_SHARE * whole):
        report.warning(
            Check.TLS,
            subject,
            f"{files.cert} ends soon: {until}",
            "renew it; services take it up by themselves",
        )
    else:
        report.ok(Check.TLS, subject, f"{files.cert}: {until}")
    return True


def _chain_problem(files: PemFiles) -> str:
    """Why a peer that trusts `ca` would not take the certificate; empty if it would.

    As peers find out: by a handshake, here in memory.
    """
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(files.cert, files.key)
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname = False
    client.load_verify_locations(cafile=files.ca)
    here, there = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [
        client.wrap_bio(here, there),
        server.wrap_bio(there, here, server_side=True),
    ]
    try:
        while ends:
            for end in list(ends):
                try:
                    end.do_handshake()
                    ends.remove(end)
                except ssl.SSLWantReadError:
                    continue
    except ssl.SSLCertVerificationError as error:
        return error.verify_message
    except ssl.SSLError as error:
        return error.reason or str(error)
    return ""
