"""`paceline doctor`: everything is checked, then all findings are told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from paceline.cli.console import api_key, fail, out, redis_url
from paceline.cli.gateway import DEFAULT_GATEWAY, VARIABLE, Ca, Tls

if TYPE_CHECKING:
    from paceline.cli.doctor.findings import Report

_STYLES = {"ok": "green", "note": "cyan", "warning": "yellow", "error": "bold red"}
_OWN = "the service's own setting"


def doctor(
    gateway: Annotated[
        str | None,
        typer.Option(
            metavar="HOST:PORT",
            envvar=VARIABLE,
            show_default=f"{DEFAULT_GATEWAY}, or where the gateway of this environment listens",
            help="gRPC address of the gateway.",
        ),
    ] = None,
    tls: Tls = False,
    ca: Ca = None,
    verifiers: Annotated[
        str,
        typer.Option(
            metavar="ADDRESSES", help="Verifiers to ask, beside those that the gateway knows, by commas."
        ),
    ] = "",
    drafters: Annotated[str, typer.Option(metavar="ADDRESSES", help="Drafters to ask, likewise.")] = "",
    redis: Annotated[
        str | None,
        typer.Option(
            "--redis-url",
            envvar="REDIS_URL",
            show_envvar=True,
            show_default=_OWN,
            help="Session store.",
        ),
    ] = None,
    tls_cert: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", show_default=_OWN, help="Certificate to show to verifiers and drafters."
        ),
    ] = None,
    tls_key: Annotated[
        Path | None,
        typer.Option(metavar="FILE", show_default=_OWN, help="Its key."),
    ] = None,
    tls_ca: Annotated[
        Path | None,
        typer.Option(metavar="FILE", show_default=_OWN, help="CAs to trust in verifiers and drafters."),
    ] = None,
    direct: Annotated[
        bool, typer.Option(help="Ask verifiers and drafters from here too, not the gateway alone.")
    ] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Check configuration, reachability, versions, vocabulary, devices, Redis, TLS and clocks.

    Says what is wrong and what to do, and exits with 1 if something does not work. Settings of services in
    the environment (PACELINE_GATEWAY_... and so on) are checked, and used: run it as a pod of a service.
    """
    from paceline.addresses import AddressError, parse_addresses
    from paceline.cli.doctor.examination import Asked, examine

    try:
        asked = Asked(
            gateway=",".join(parse_addresses(gateway or "")),
            tls=tls,
            ca=ca,
            api_key=api_key(),
            verifiers=parse_addresses(verifiers),
            drafters=parse_addresses(drafters),
            redis_url=redis or redis_url(),
            cert=tls_cert,
            key=tls_key,
            trusted=tls_ca,
            direct=direct,
        )
    except AddressError as error:
        fail(f"--gateway ({VARIABLE}), --verifiers or --drafters: {error}")
    if len({tls_cert is None, tls_key is None, tls_ca is None}) > 1:
        fail("give all of --tls-cert, --tls-key and --tls-ca, or none")
    report = examine(asked)
    if as_json:
        out.file.write(json.dumps(report.to_json()) + "\n")
    else:
        _print(report)
    if not report.healthy:
        raise typer.Exit(1)


def _print(report: Report) -> None:
    from rich.text import Text

    from paceline.cli.doctor.findings import Level

    for finding in report.findings:
        out.print(
            Text.assemble(
                (f"{finding.level:8}", _STYLES[finding.level]),
                (f"{finding.check:14}", "dim"),
                (f"{finding.subject}: ", "bold"),
                finding.what,
            )
        )
        if finding.do:
            out.print(Text(f"{'':22}-> {finding.do}"))
    errors, warnings = report.count(Level.ERROR), report.count(Level.WARNING)
    if report.healthy:
        out.print(f"[green]healthy[/green], {warnings} warnings")
    else:
        out.print(f"[bold red]not healthy[/bold red]: {errors} errors, {warnings} warnings")
