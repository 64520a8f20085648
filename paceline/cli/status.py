"""`paceline status`: the fleet as one gateway sees it."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from paceline.cli.console import out
from paceline.cli.gateway import DEFAULT_GATEWAY, Ca, Gateway, Tls, connected

if TYPE_CHECKING:
    from rich.console import Group
    from rich.table import Table

    from paceline.client import SyncGatewayClient
    from paceline.v1.gateway_pb2 import FleetResponse

_REFRESH_S = 1.0


def status(
    gateway: Gateway = DEFAULT_GATEWAY,
    tls: Tls = False,
    ca: Ca = None,
    watch: Annotated[bool, typer.Option("--watch", help="Refresh every second until Ctrl-C.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON; with --watch, a line a second.")
    ] = False,
) -> None:
    """Show the fleet: pods, health, sessions, acceptance."""
    try:
        with connected(gateway, tls=tls, ca=ca) as client:
            if not watch:
                _print(client.fleet(), as_json=as_json)
            elif as_json:
                while True:
                    _print(client.fleet(), as_json=True)
                    time.sleep(_REFRESH_S)
            else:
                _watch(client)
    except KeyboardInterrupt:
        raise typer.Exit(130 if not watch else 0) from None


def _print(fleet: FleetResponse, *, as_json: bool) -> None:
    if as_json:
        from google.protobuf.json_format import MessageToDict

        # Zeros stay in, so that a script finds every field.
        fields = MessageToDict(
            fleet, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
        )
        out.file.write(json.dumps(fields) + "\n")
        out.file.flush()
    else:
        out.print(_tables(fleet))


def _watch(client: SyncGatewayClient) -> None:
    from rich.live import Live

    with Live(_tables(client.fleet()), console=out, auto_refresh=False) as live:
        while True:
            time.sleep(_REFRESH_S)
            live.update(_tables(client.fleet()), refresh=True)


def _tables(fleet: FleetResponse) -> Group:
    from rich.console import Group
    from rich.text import Text

    misfits = dict.fromkeys(pod.misfit for pod in fleet.verifiers if pod.misfit)
    said = [Text(why, "red") for why in misfits]
    return Group(_verifiers(fleet), *said, _drafters(fleet), f"{fleet.sessions} sessions at this gateway")


def _verifiers(fleet: FleetResponse) -> Table:
    table = _table("verifier", "health", "serves", "sessions", "KV", "accept", "tokens", "drafters")
    for pod in fleet.verifiers:
        known = pod.status
        aside = f" ({len(known.drafters_aside)} aside)" if known.drafters_aside else ""
        # Committed tokens per verify step of a session.
        acceptance = known.committed_tokens / known.session_steps if known.session_steps else None
        table.add_row(
            pod.address,
            _health(pod.healthy, known.draining, pod.misfit),
            f"{known.model_id} on {known.device}" if known.model_id else "?",
            f"{known.sessions}/{known.max_sessions}",
            f"{known.kv_used / known.kv_total:.0%}" if known.kv_total else "-",
            f"{acceptance:.2f}" if acceptance else "-",
            f"{known.committed_tokens:,}",
            f"{len(known.drafters)}{aside}",
        )
    return table


def _drafters(fleet: FleetResponse) -> Table:
    table = _table("drafter", "health", "method", "sessions", "drafted", "accepted", "verifiers")
    for pod in fleet.drafters:
        known = pod.status
        rate = f" ({known.accepted_tokens / known.drafted_tokens:.0%})" if known.drafted_tokens else ""
        table.add_row(
            pod.address,
            _health(pod.healthy, known.draining),
            known.method or "?",
            f"{known.sessions}/{known.max_sessions}",
            f"{known.drafted_tokens:,}",
            f"{known.accepted_tokens:,}{rate}",
            str(len(known.verifiers)),
        )
    return table


def _table(*columns: str) -> Table:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for column in columns:
        # On a narrow terminal names fold; numbers stay whole.
        justify: Literal["left", "right"] = "right" if column in _NUMBERS else "left"
        table.add_column(column, justify=justify, no_wrap=column not in _NAMES, overflow="fold")
    return table


_NAMES = {"serves", "method"}
_NUMBERS = {
    "sessions",
    "KV",
    "accept",
    "tokens",
    "drafters",
    "drafted",
    "accepted",
    "verifiers",
}


def _health(healthy: bool, draining: bool, misfit: str = "") -> str:
    if not healthy:
        return "[red]down[/red]"
    if misfit:
        return "[red]misfit[/red]"
    return "[yellow]draining[/yellow]" if draining else "[green]ok[/green]"
