"""Start a verifier: it holds the model and decides the text. SIGTERM drains it."""

from __future__ import annotations

from paceline.service import interrupts

if __name__ == "__main__":
    interrupts.end_quietly()

from collections.abc import Callable

from paceline.models import unused
from paceline.service.settings import service_command
from verifier_svc.config import VerifierSettings


def load(settings: VerifierSettings) -> Callable[[VerifierSettings], None]:
    """Import what serves."""
    unused.hide("scipy")
    if not unused.is_torchao_checkpoint(settings.model):
        unused.hide("torchao")
    from verifier_svc.service import run

    return run


command = service_command("verifier", VerifierSettings, load, help=__doc__ or "")

if __name__ == "__main__":
    command()
