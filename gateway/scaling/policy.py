"""What recommendations aim at, and how quickly they follow the load."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Policy:
    """See `ScalingSettings` for each field."""

    out_seconds: float = 15.0
    in_seconds: float = 300.0
    tolerance: float = 0.1
    verifier_load: float = 0.7
    verifier_kv: float = 0.8
    drafter_busy: float = 0.6
    starvation: float = 0.2
    retry_seconds: float = 1800.0
    # Share of its places for sessions that a pod should have taken. All of them leave none for a session that
    # moves.
    places: float = 0.9
