"""A process's TLS identity: certificate, key and trusted CAs, read again when their files change."""

from __future__ import annotations

import asyncio
import ssl
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import grpc
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from paceline.net.roles import Role, RoleCheck
from paceline.service import metrics, telemetry
from paceline.service.settings import ServiceSettings, SettingsError

log = telemetry.logger(__name__)

_WATCH_SECONDS = 1.0


class TlsError(SettingsError):
    """The files cannot be used; the message names the setting and says why."""


@dataclass(frozen=True, slots=True)
class PemFiles:
    """Paths of an identity's files. `ca` is None for a server that demands no client certificate.

    `prefix` begins the names of the settings that gave the paths.
    """

    cert: Path
    key: Path
    ca: Path | None
    prefix: str

    def flag(self, name: str) -> str:
        """The setting of one file, for messages."""
        return f"--{self.prefix}-{name}"

    def stamps(self) -> tuple[Any, ...]:
        """A value that changes when a file does, or when a symbolic link on its path leads elsewhere."""
        return tuple(_stamp(path) for path in (self.cert, self.key, self.ca) if path is not None)


@dataclass(frozen=True, slots=True)
class Certificates:
    """The files' contents in PEM, read once: key and certificate match and are valid now."""

    chain: bytes
    key: bytes
    ca: bytes | None
    not_before: datetime
    not_after: datetime
    https: ssl.SSLContext

    def for_servers(self) -> grpc.ServerCertificateConfiguration:
        """As gRPC's servers take it."""
        return grpc.ssl_server_certificate_configuration([(self.key, self.chain)], self.ca)


class Identity:
    """The certificates in force. A server asks for them at every handshake, a client at every new channel.

    Files that cannot be used after a change leave the ones before in force, with an error in the log.
    """

    def __init__(self, files: PemFiles, role: Role | None = None) -> None:
        """`role`: what the certificate must give. Raises `TlsError` when the files cannot be used."""
        self._files = files
        self._role = role
        self._stamps = files.stamps()
        self.current = read_files(files, role)
        setting = files.flag("cert")
        metrics.CERTIFICATE_NOT_BEFORE.labels(setting=setting).set_function(
            lambda: self.current.not_before.timestamp()
        )
        metrics.CERTIFICATE_NOT_AFTER.labels(setting=setting).set_function(
            lambda: self.current.not_after.timestamp()
        )

    @classmethod
    def of_service(cls, settings: ServiceSettings, role: Role) -> Identity | None:
        """The identity that a service shows to other services; None without TLS. Raises `TlsError`."""
        if settings.tls_cert is None or settings.tls_key is None:
            return None
        return cls(PemFiles(settings.tls_cert, settings.tls_key, settings.tls_ca, "tls"), role)

    @classmethod
    def for_clients(cls, cert: Path | None, key: Path | None) -> Identity | None:
        """The identity that a gateway shows to clients; None without files. Raises `TlsError`."""
        if cert is None or key is None:
            return None
        return cls(PemFiles(cert, key, None, "public-tls"))

    async def keep_up(self) -> None:
        """Read the files again whenever they have changed, until cancelled."""
        while True:
            await asyncio.sleep(_WATCH_SECONDS)
            self.refresh()

    def refresh(self) -> None:
        """Read the files again if they have changed since they were read last."""
        # Taken before reading, so that a change meanwhile is seen the next time.
        stamps = self._files.stamps()
        if stamps == self._stamps:
            return
        self._stamps = stamps
        try:
            self.current = read_files(self._files, self._role)
        except TlsError as error:
            log.error("new certificate not used, the one before stays in force", reason=str(error))
        else:
            log.info(
                "certificate reloaded",
                file=str(self._files.cert),
                not_after=self.current.not_after.isoformat(),
            )

    @property
    def interceptors(self) -> tuple[grpc.aio.ServerInterceptor, ...]:
        """Interceptors that check a server's calls against roles."""
        return () if self._files.ca is None else (RoleCheck(),)

    def server_credentials(self) -> grpc.ServerCredentials:
        """Credentials of a gRPC server. With a CA, only clients with a certificate of that CA get in."""
        return grpc.dynamic_ssl_server_credentials(
            self.current.for_servers(),
            lambda: self.current.for_servers(),
            require_client_authentication=self._files.ca is not None,
        )

    def channel_credentials(self) -> grpc.ChannelCredentials:
        """Credentials of a gRPC channel. They stay as they are now for as long as the channel lives."""
        current = self.current
        return grpc.ssl_channel_credentials(current.ca, current.key, current.chain)

    def https_context(self) -> ssl.SSLContext:
        """For an HTTPS server."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)

        def take_current(connection: ssl.SSLObject, _name: str | None, _context: ssl.SSLContext) -> None:
            connection.context = self.current.https

        context.sni_callback = take_current
        return context


def _stamp(path: Path) -> tuple[int, ...] | None:
    try:
        state = path.stat()
    except OSError:
        return None
    return state.st_dev, state.st_ino, state.st_mtime_ns, state.st_size


def read_files(files: PemFiles, role: Role | None) -> Certificates:
    """The contents of `files`, for a service of `role`. Raises `TlsError`."""
    chain, key = _bytes(files.flag("cert"), files.cert), _bytes(files.flag("key"), files.key)
    ca = None if files.ca is None else _bytes(files.flag("ca"), files.ca)
    where = f"{files.flag('cert')} {files.cert}"
    leaf = _certificates(where, chain)[0]
    _check_time(where, leaf)
    if role is not None:
        _check_role(where, leaf, role)
    _check_key(f"{files.flag('key')} {files.key}", key, leaf, files.cert)
    if ca is not None:
        _certificates(f"{files.flag('ca')} {files.ca}", ca)
    https = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        https.load_cert_chain(files.cert, files.key)
    except (ssl.SSLError, OSError) as error:
        raise TlsError(f"{where}: {error}") from error
    return Certificates(chain, key, ca, leaf.not_valid_before_utc, leaf.not_valid_after_utc, https)


def _bytes(setting: str, path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise TlsError(f"{setting} {path}: {error.strerror}; name a PEM file that can be read") from error


def _certificates(where: str, pem: bytes) -> list[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates(pem)
    except ValueError as error:
        raise TlsError(f"{where} holds no certificate in PEM: {error}") from error


def _check_time(where: str, leaf: x509.Certificate) -> None:
    if not leaf.not_valid_before_utc <= datetime.now(UTC) < leaf.not_valid_after_utc:
        raise TlsError(
            f"{where} is valid from {leaf.not_valid_before_utc:%Y-%m-%d %H:%M:%S} to "
            f"{leaf.not_valid_after_utc:%Y-%m-%d %H:%M:%S} UTC, and not now; issue a new one"
        )


def _check_role(where: str, leaf: x509.Certificate, role: Role) -> None:
    try:
        san = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        names = []
    else:
        names = san.get_values_for_type(x509.DNSName)
    if role not in Role.of_names(names):
        raise TlsError(
            f"{where} is for {', '.join(names) or 'no DNS name'}; issue one with the DNS name "
            f"{role.dns_name}, by which the other services know a {role}"
        )


def _check_key(where: str, pem: bytes, leaf: x509.Certificate, cert: Path) -> None:
    try:
        key = load_pem_private_key(pem, password=None)
    except TypeError as error:
        raise TlsError(f"{where} is encrypted; give a key without a password") from error
    except (ValueError, UnsupportedAlgorithm) as error:
        raise TlsError(f"{where} holds no private key in PEM: {error}") from error
    if key.public_key() != leaf.public_key():
        raise TlsError(f"{where} does not belong to the certificate in {cert}")
