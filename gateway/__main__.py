"""Start a gateway: clients over HTTP and gRPC. SIGTERM drains it."""

from __future__ import annotations

from paceline.service import interrupts

if __name__ == "__main__":
    interrupts.end_quietly()

from collections.abc import Callable

from gateway.config import GatewaySettings
from paceline.models import unused
from paceline.service.settings import service_command


def load(settings: GatewaySettings) -> Callable[[GatewaySettings], None]:
    """Import what serves."""
    unused.hide("torch")
    from gateway.service import run

    return run


command = service_command("gateway", GatewaySettings, load, help=__doc__ or "")

if __name__ == "__main__":
    command()
