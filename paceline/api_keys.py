"""API keys: how they are made, what they are for, and the one thing that is kept of them."""

from __future__ import annotations

import hashlib
import secrets
from enum import StrEnum

_PREFIX = "pk-"
_RANDOM_BYTES = 32


class Scope(StrEnum):
    """What a key may do."""

    # Completions and their sessions.
    GENERATE = "generate"
    # See the fleet.
    STATUS = "status"


def new_api_key() -> str:
    """A key of 256 random bits. Nobody but its holder is to keep it."""
    return _PREFIX + secrets.token_urlsafe(_RANDOM_BYTES)


def api_key_hash(key: str) -> str:
    """SHA-256 in hex: what a key file holds.

    Neither salt nor stretching: they slow down guessing, and 256 random bits are not guessed.
    """
    return hashlib.sha256(key.encode()).hexdigest()
