"""Who asks: what a request may do, and which sessions are its own."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Caller:
    """`id` is that of the API key a request came with; empty where none is demanded."""

    id: str = ""


ANYBODY = Caller()
