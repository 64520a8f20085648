"""Why a server does not answer: name, network, port, TLS, certificate, one after the other."""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509

from paceline.addresses import parse_address
from paceline.net.roles import Role

_SECONDS = 3.0
# Arguments of the exception where a server closes the connection after the handshake.
_CLOSED = ("closed after the handshake",)
_REFUSED = (
    "it refuses our certificate",
    "show one that a CA in its --tls-ca has issued and that is valid now (--tls-cert, --tls-key)",
)


@dataclass(frozen=True, slots=True)
class Shown:
    """What we show and whom we trust: PEM files. `cert` and `key` are None where we show nothing.

    `ca`: None trusts the system's CAs.
    """

    ca: Path | None = None
    cert: Path | None = None
    key: Path | None = None


async def diagnosis(address: str, shown: Shown | None, role: Role | None = None) -> tuple[str, str] | None:
    """What is wrong and what to do; None if connection and TLS are well.

    `shown`: None expects plaintext. `role`: what the server's certificate must give; without one a
    certificate for the host is expected.
    """
    host, port = parse_address(address)
    try:
        async with asyncio.timeout(_SECONDS):
            _, writer = await asyncio.open_connection(host, port)
        writer.close()
    except TimeoutError:
        return (
            "does not answer a connection",
            "let this machine through: look at network policies, firewalls and the address",
        )
    except socket.gaierror as error:
        return (
            f"the name {host} is not known here: {error.strerror}",
            "correct the name, or start what it names: a Service without pods has no address",
        )
    except ConnectionRefusedError:
        return "nothing listens there", "start it, or correct the address; its log says why if it ended"
    except OSError as error:
        why = os.strerror(error.errno) if error.errno else str(error)
        return f"cannot be reached: {why}", "correct the address, or the route from this machine to it"
    speaks_tls = await _speaks_tls(host, port)
    if shown is None:
        if speaks_tls:
            return (
                "speaks TLS, and was spoken to in plaintext",
                "name the certificates: --tls-cert, --tls-key, --tls-ca; for a gateway --ca or --tls",
            )
        return None
    if not speaks_tls:
        return "speaks plaintext, and was spoken to in TLS", "give it certificates too, or none to anybody"
    return await _certificate_problem(host, port, shown, role)


async def _speaks_tls(host: str, port: int) -> bool:
    """Whether it answers a TLS greeting; a server that refuses us for our certificate does, too."""
    try:
        await _connect(host, port, _context(None))
    except ssl.SSLError as error:
        # It answered by rules of TLS, unless its bytes were not TLS at all.
        return error.reason not in ("WRONG_VERSION_NUMBER", "HTTP_REQUEST", "RECORD_LAYER_FAILURE")
    except ConnectionResetError as error:
        return error.args == _CLOSED
    except (OSError, TimeoutError):
        return False
    return True


async def _certificate_problem(
    host: str, port: int, shown: Shown, role: Role | None
) -> tuple[str, str] | None:
    trusting = _context(shown)
    name = role.dns_name if role is not None else host
    trusting.check_hostname = False
    trusting.verify_mode = ssl.CERT_REQUIRED
    seen = await _peer_certificate(host, port, shown)
    if seen is not None:
        now = datetime.now(UTC)
        if not seen.not_valid_before_utc <= now < seen.not_valid_after_utc:
            return (
                f"its certificate is valid from {seen.not_valid_before_utc:%Y-%m-%d %H:%M} to "
                f"{seen.not_valid_after_utc:%Y-%m-%d %H:%M} UTC, and not now",
                "issue a new one, and look why it was not renewed; or set this machine's clock",
            )
    try:
        await _connect(host, port, trusting)
    except ssl.SSLCertVerificationError as error:
        return (
            f"its certificate is not trusted here: {error.verify_message}",
            "trust the CA that issued it (--tls-ca, for a gateway --ca), or have that CA issue one",
        )
    except (ssl.SSLError, ConnectionError):
        # gRPC's servers close without a word.
        return _REFUSED
    except (OSError, TimeoutError) as error:
        return f"ends the TLS handshake: {error}", "its log says why"
    if seen is not None and name not in (names := _names(seen)):
        return (
            f"its certificate is for {', '.join(names) or 'no name'}, not for {name}",
            "issue one with that name" + ("; or another service listens there" if role is not None else ""),
        )
    return None


async def _peer_certificate(host: str, port: int, shown: Shown) -> x509.Certificate | None:
    """What the server shows to anybody; None if it ends the handshake before."""
    context = _context(shown)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    try:
        der = await _connect(host, port, context)
    except (OSError, TimeoutError):
        return None
    return None if der is None else x509.load_der_x509_certificate(der)


async def _connect(host: str, port: int, context: ssl.SSLContext) -> bytes | None:
    """The peer's certificate. Raises `ConnectionError` where it closes after the handshake."""
    async with asyncio.timeout(_SECONDS):
        reader, writer = await asyncio.open_connection(host, port, ssl=context, server_hostname=host)
        try:
            tls = writer.get_extra_info("ssl_object")
            der: bytes | None = tls.getpeercert(binary_form=True)
            # With TLS 1.3 the handshake ends before the server has looked at our certificate. An HTTP/2
            # server speaks first: its settings, or its refusal.
            if not await reader.read(1):
                raise ConnectionResetError(*_CLOSED)
            return der
        finally:
            writer.close()


def _context(shown: Shown | None) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.set_alpn_protocols(["h2"])
    if shown is None:
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        return context
    if shown.ca is None:
        context.load_default_certs()
    else:
        context.load_verify_locations(cafile=shown.ca)
    if shown.cert is not None:
        context.load_cert_chain(shown.cert, shown.key)
    return context


def _names(certificate: x509.Certificate) -> list[str]:
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return []
    addresses = [str(address) for address in names.get_values_for_type(x509.IPAddress)]
    return [*names.get_values_for_type(x509.DNSName), *addresses]
