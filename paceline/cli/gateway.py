"""The gateway a command talks to: options that name it, a client of it, its failures in the user's terms."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from paceline.cli.console import api_key, fail

if TYPE_CHECKING:
    import grpc

    from paceline.client import SyncGatewayClient

DEFAULT_GATEWAY = "127.0.0.1:8001"
# No Service can have a name whose links are called so: theirs go on after it.
VARIABLE = "PACELINE_GATEWAY"
Gateway = Annotated[
    str, typer.Option(metavar="HOST:PORT", envvar=VARIABLE, help="gRPC address of the gateway.")
]
Tls = Annotated[bool, typer.Option("--tls", help="Speak TLS; the system's CAs are trusted.")]
Ca = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Speak TLS; the CAs in this PEM file are trusted.")
]


@contextmanager
def connected(gateway: str, *, tls: bool, ca: Path | None) -> Iterator[SyncGatewayClient]:
    """A client for the block; what fails in it is said and ends the command."""
    from paceline.addresses import AddressError, parse_addresses
    from paceline.client import GatewayError, GatewayUnreachableError, SyncGatewayClient

    try:
        gateway = ",".join(parse_addresses(gateway))
    except AddressError as error:
        fail(f"--gateway ({VARIABLE}): {error}")
    try:
        credentials = _credentials(ca) if tls or ca else None
        with SyncGatewayClient(gateway, credentials, api_key=api_key()) as client:
            yield client
    except GatewayUnreachableError as error:
        hint = "" if tls or ca else "; does it speak TLS? Then give --tls or --ca FILE"
        fail(f"{error}: start a fleet with `paceline up`, or name another with --gateway HOST:PORT{hint}")
    except GatewayError as error:
        fail(f"{error} ({error.code.name})")


def _credentials(ca: Path | None) -> grpc.ChannelCredentials:
    import grpc

    try:
        return grpc.ssl_channel_credentials(None if ca is None else ca.read_bytes())
    except OSError as error:
        fail(f"--ca {ca}: {error.strerror}")
