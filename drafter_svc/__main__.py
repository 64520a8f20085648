"""Start a drafter: it guesses tokens for verifiers to check. SIGTERM drains it."""

from __future__ import annotations

from paceline.service import interrupts

if __name__ == "__main__":
    interrupts.end_quietly()

from collections.abc import Callable

from drafter_svc.config import DrafterSettings
from paceline.service.settings import service_command


def load(settings: DrafterSettings) -> Callable[[DrafterSettings], None]:
    """Import what serves."""
    from drafter_svc.service import run

    return run


def load_listing(settings: DrafterSettings) -> Callable[[DrafterSettings], None]:
    """Import what lists methods."""
    from drafter_svc.listing import show

    return show


methods = service_command(
    "methods",
    DrafterSettings,
    load_listing,
    help="List the ways of drafting: what each needs, and whether it can be used as set.",
)
command = service_command("drafter", DrafterSettings, load, help=__doc__ or "", beside=[methods])

if __name__ == "__main__":
    command()
