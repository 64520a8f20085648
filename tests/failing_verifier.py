"""A verifier whose engine fails as soon as the file that $ENGINE_FAILS names is there."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any
from unittest.mock import patch

from paceline.engine import engine
from paceline.engine.verify import Decision, decide
from verifier_svc.__main__ import command


def _decide(*args: Any) -> list[Decision]:
    if Path(os.environ["ENGINE_FAILS"]).exists():
        raise RuntimeError("as its test wants it")
    return decide(*args)


if __name__ == "__main__":
    with patch.object(engine, "decide", _decide):
        command()
