"""A drafter process that plays a recording: `python -m bench.drafters.player --recording FILE --draft-ms MS`.

Other settings of a drafter come from its environment.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from bench.drafters.recorded import PlayerFactory, Recorded
from drafter_svc.config import DrafterSettings
from drafter_svc.service import serve
from paceline.local.plan import HOST
from paceline.net import rpc
from paceline.service import telemetry
from paceline.service.settings import load_settings


def main() -> None:
    """Serve until SIGTERM."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--recording", type=Path, required=True)
    parser.add_argument("--draft-ms", type=float, required=True)
    parser.add_argument("--host", default=HOST)
    parser.add_argument("--port", type=int, default=0)
    given = parser.parse_args()
    settings = load_settings(DrafterSettings, host=given.host, port=given.port)
    telemetry.setup("drafter", settings)
    factory = PlayerFactory(Recorded.read(given.recording), given.draft_ms / 1e3)
    rpc.run_service(lambda stop: serve(settings, (factory,), stop))


if __name__ == "__main__":
    main()
