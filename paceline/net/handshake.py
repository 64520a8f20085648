"""Whether two services fit one another: protocol version, model and vocabulary."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

PROTOCOL_VERSION = 1
MAX_FEEDBACK_TOP_K = 32
MAX_DRAFTER_ID = 128
MAX_SOURCES = 16
SOURCE = re.compile(r"[a-z0-9_-]{1,32}")


@dataclass(frozen=True, slots=True)
class Served:
    """A served model: the name that clients use, and the fingerprint of its vocabulary."""

    model_id: str
    vocab_fingerprint: str

    def misfit(self, verifier: Served) -> str:
        """Why a gateway of this model may not give sessions to a verifier; empty when it may."""
        if verifier.model_id != self.model_id:
            return (
                f"a verifier serves {verifier.model_id!r} and this gateway {self.model_id!r}: "
                "give both the same --model-name"
            )
        if verifier.vocab_fingerprint != self.vocab_fingerprint:
            return (
                f"a verifier's vocabulary of {self.model_id!r} ({verifier.vocab_fingerprint or 'unknown'}) "
                f"is not this gateway's ({self.vocab_fingerprint}): give both the same --model"
            )
        return ""


class HandshakeError(ValueError):
    """The two sides do not fit; the message says why and what to do."""


def vocab_fingerprint(tokens: Mapping[str, int]) -> str:
    """Hash of a vocabulary (32 hex digits): equal only where tokens map to the same ids."""
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
    sources: Sequence[str] = (),
) -> None:
    """Raise `HandshakeError` unless the drafter may speak to this verifier.

    An empty fingerprint belongs to a drafter that only copies ids it was given: it fits any model. `sources`
    are the names of what its nodes come from; none is one source without a name.
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
    if len(sources) > MAX_SOURCES or len(set(sources)) != len(sources):
        raise HandshakeError(f"sources must be at most {MAX_SOURCES} different names, got {len(sources)}")
    for source in sources:
        if not SOURCE.fullmatch(source):
            raise HandshakeError("each of sources must be 1 to 32 characters of a-z 0-9 _ -")
