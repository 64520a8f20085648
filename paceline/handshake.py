"""Do a drafter and a verifier fit: protocol version and vocabulary, agree or refuse."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

PROTOCOL_VERSION = 1
MAX_FEEDBACK_TOP_K = 32
MAX_DRAFTER_ID = 128


class HandshakeError(ValueError):
    """The two sides do not fit; the message says in what and what to do."""


def vocab_fingerprint(tokens: Mapping[str, int]) -> str:
    """32 hex digits that two tokenizers share exactly when they map the same tokens to the same ids."""
    digest = hashlib.sha256()
    for token, index in sorted(tokens.items(), key=lambda item: item[1]):
        encoded = token.encode("utf-8", "surrogatepass")
        digest.update(b"%d:%d:" % (index, len(encoded)))
        digest.update(encoded)
    return digest.hexdigest()[:32]


def check_hello(
    *,
    protocol_version: int,
    drafter_id: str,
    feedback_top_k: int,
    vocab_fingerprint: str,
    served_fingerprint: str,
) -> None:
    """Raise `HandshakeError` unless the drafter may speak to this verifier.

    An empty fingerprint belongs to a drafter that only copies ids it was given: it fits any model.
    """
    if protocol_version != PROTOCOL_VERSION:
        raise HandshakeError(
            f"protocol version {protocol_version} is not spoken here, only {PROTOCOL_VERSION}; "
            "run drafter and verifier of the same release"
        )
    if not 1 <= len(drafter_id) <= MAX_DRAFTER_ID:
        raise HandshakeError(f"drafter_id must have 1 to {MAX_DRAFTER_ID} characters, got {len(drafter_id)}")
    if feedback_top_k > MAX_FEEDBACK_TOP_K:
        raise HandshakeError(f"feedback_top_k is at most {MAX_FEEDBACK_TOP_K}, got {feedback_top_k}")
    if vocab_fingerprint and vocab_fingerprint != served_fingerprint:
        raise HandshakeError(
            f"the drafter's vocabulary {vocab_fingerprint} is not the target's {served_fingerprint}; "
            "its model must use the target's tokenizer"
        )
