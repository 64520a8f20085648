"""A drafter process that plays recordings: `python -m bench.drafters.player --sources FILE`.

FILE holds the sources as JSON, in the order of their numbers (`bench.drafters.recorded.Source`). Other
settings of a drafter come from its environment.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from bench.drafters.recorded import PlayerFactory, Source
from drafter_svc.config import DrafterSettings
from drafter_svc.service import serve
from paceline.local.plan import HOST
from paceline.net import rpc
from paceline.service import telemetry
from paceline.service.settings import load_settings


def main() -> None:
    """Serve until SIGTERM."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sources", type=Path, required=True)
    parser.add_argument("--host", default=HOST)
    parser.add_argument("--port", type=int, default=0)
    given = parser.parse_args()
    settings = load_settings(DrafterSettings, host=given.host, port=given.port)
    telemetry.setup("drafter", settings)
    told = json.loads(given.sources.read_text(encoding="utf-8"))
    factories = tuple(PlayerFactory(Source.of(each)) for each in told)
    rpc.run_service(lambda stop: serve(settings, factories, stop))


if __name__ == "__main__":
    main()
