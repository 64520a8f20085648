"""`paceline health`: ask a service of this machine whether it serves, as health checks of containers do."""

from __future__ import annotations

import asyncio
from enum import StrEnum
from typing import Annotated

import typer

from paceline.cli.console import err, fail


class Service(StrEnum):
    """What can be asked."""

    GATEWAY = "gateway"
    VERIFIER = "verifier"
    DRAFTER = "drafter"


def health(
    service: Annotated[Service, typer.Argument(help="Which service; its environment says where it listens.")],
    ready: Annotated[
        bool, typer.Option("--ready", help="Of a gateway: whether it can serve requests, not only answer.")
    ] = False,
) -> None:
    """Ask a service of this machine whether it serves; exit with 1 where it does not.

    Reads its address and its certificates from the variables that the service itself reads.
    """
    from paceline.cli.probe import probe
    from paceline.net.roles import Role
    from paceline.service.settings import SettingsError

    try:
        asked = probe(Role(service), ready=ready)
        serves = asyncio.run(asked.serves())
    except SettingsError as error:
        fail(str(error))
    if not serves:
        err.print(f"{service} at {asked.address} does not serve")
        raise typer.Exit(1)
