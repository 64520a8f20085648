"""Who is at the other end of a call, by its certificate or connection, never by a name it gives itself."""

from __future__ import annotations

import hashlib
from typing import Any

import grpc
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat


def peer_of(context: grpc.aio.ServicerContext[Any, Any]) -> str:
    """The caller's identity: certificate key and host; without a certificate, the connection.

    The key, because a renewed certificate makes nobody another. The host beside it, because pods of a role
    may share a certificate.
    """
    connection: str = context.peer()
    shown = next(iter(context.auth_context().get("x509_pem_cert", ())), None)
    if shown is None:
        return connection
    key = x509.load_pem_x509_certificate(shown).public_key()
    digest = hashlib.sha256(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).hexdigest()
    host, _, _port = connection.rpartition(":")
    return f"key {digest[:32]} at {host}"
