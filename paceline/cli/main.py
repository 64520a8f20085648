"""Where the `paceline` script begins: before it imports the commands, Ctrl-C is made to end it quietly."""

from __future__ import annotations

from paceline.service import interrupts


def main() -> None:
    """Entry point of the `paceline` script."""
    interrupts.end_quietly()
    from paceline.cli import app

    app.run()
