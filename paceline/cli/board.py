"""The services of a local fleet and their states: live while they start, one line per event after that."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from rich.live import Live
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from paceline.cli.console import err
from paceline.local.fleet import ServiceState

_STYLE = {
    ServiceState.WAITING: "dim",
    ServiceState.STARTING: "yellow",
    ServiceState.READY: "green",
    ServiceState.RESTARTING: "bold yellow",
    ServiceState.FAILED: "bold red",
    ServiceState.STOPPED: "dim",
}


class Board:
    """Give `change` to a `LocalFleet`."""

    def __init__(self, names: Sequence[str]) -> None:
        self._states = dict.fromkeys(names, (ServiceState.WAITING, ""))
        self._since = dict.fromkeys(names, time.monotonic())
        self._live: Live | None = None

    def change(self, name: str, state: ServiceState, detail: str = "") -> None:
        """Note a service's new state and show it."""
        self._states[name] = (state, detail)
        self._since[name] = time.monotonic()
        if self._live is not None:
            return  # the live table shows it
        if state in (ServiceState.READY, ServiceState.RESTARTING, ServiceState.FAILED):
            err.print(Text.assemble(f"  {name} ", (state.value, _STYLE[state]), f" {detail}".rstrip()))

    @contextmanager
    def live(self) -> Iterator[None]:
        """Show a table that follows the states; nothing where there is no terminal."""
        if not err.is_terminal:
            yield
            return
        with Live(get_renderable=self._table, console=err, refresh_per_second=8) as self._live:
            try:
                yield
            finally:
                self._live.refresh()
                self._live = None

    def _table(self) -> Table:
        table = Table.grid(padding=(0, 2))
        for name, (state, detail) in self._states.items():
            starting = state is ServiceState.STARTING
            if starting:
                detail = f"{time.monotonic() - self._since[name]:.0f} s"
            mark = Spinner("dots") if starting else Text("✓" if state is ServiceState.READY else " ", "green")
            table.add_row(mark, name, Text(state.value, _STYLE[state]), Text(detail, "dim"))
        return table
