"""A drafter process that plays a recording: `python -m bench.drafters.player --recording FILE --draft-ms MS`,
and a drafter's own flags behind these.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from bench.drafters.recorded import PlayerFactory, Recorded
from drafter_svc.config import DrafterSettings
from drafter_svc.service import serve
from paceline.net import rpc
from paceline.service import telemetry
from paceline.service.settings import read_settings


def main() -> None:
    """Serve until SIGTERM."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--recording", type=Path, required=True)
    parser.add_argument("--draft-ms", type=float, required=True)
    given, flags = parser.parse_known_args()
    settings = read_settings(DrafterSettings, flags)
    telemetry.setup("drafter", settings)
    factory = PlayerFactory(Recorded.read(given.recording), given.draft_ms / 1e3)
    rpc.run_service(lambda stop: serve(settings, (factory,), stop))


if __name__ == "__main__":
    main()
