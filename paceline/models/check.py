"""Load a model, hold it against its own forward, and say what was seen: `paceline model check`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from paceline.engine.check import CASES
from paceline.engine.loading import ModelError
from paceline.engine.model import Decoder, choose_device, load_weights


def run(
    model: Path, *, dtype: str, device: str, longest: int, trust_remote_code: bool = False
) -> dict[str, Any]:
    """`served`, `reason` where it is not, `exact`, and every case with its difference and tolerance.

    `dtype` and `device` as the verifier's settings name them; `longest`: see `engine.check`.
    """
    decoder: Decoder | None = None
    reason = ""
    beyond = None
    try:
        place = choose_device(device)
        weights, shape, own = load_weights(
            model,
            device=place,
            dtype=None if dtype == "auto" else getattr(torch, dtype),
            trust_remote_code=trust_remote_code,
            longest=longest,
        )
        beyond = own.window_beyond
        decoder = Decoder(weights, shape, place)
        decoder.verify(own)
    except ModelError as error:
        reason = str(error)
    cases = decoder.report.cases if decoder else ()
    return {
        "model": str(model),
        "served": not reason,
        "reason": reason,
        "exact": bool(decoder and not reason and decoder.exact),
        "window_beyond": beyond,
        "cases": [
            {
                "name": case.name,
                "what": CASES[case.name],
                "ok": case.ok,
                "difference": case.difference,
                "tolerance": case.tolerance,
                "bitwise": case.bitwise,
            }
            for case in cases
        ],
    }
