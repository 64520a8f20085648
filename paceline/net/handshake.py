"""Whether two services fit one another: protocol version, model and vocabulary."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from paceline.features import (
    MAX_LAYERS,
    MAX_REQUESTS,
    MAX_WINDOW_BYTES,
    MIN_WINDOW_BYTES,
    FeatureRequest,
)
from paceline.session import METHOD_NAME

PROTOCOL_VERSION = 2
# Versions of drafters that a verifier serves. Version 1 knew neither hidden states nor sources of nodes.
SPOKEN_VERSIONS = (1, 2)
MAX_FEEDBACK_TOP_K = 32
MAX_DRAFTER_ID = 128
# Most names of methods that a drafter's nodes come from.
MAX_SOURCES = 16
_WEIGHTS = re.compile(r"[0-9a-f]{32}")


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


@dataclass(frozen=True, slots=True)
class Hello:
    """What a drafter says of itself first.

    An empty `vocab_fingerprint` belongs to a drafter that only copies ids it was given: it fits any model.
    """

    protocol_version: int
    drafter_id: str
    vocab_fingerprint: str = ""
    feedback_top_k: int = 0
    features: tuple[FeatureRequest, ...] = ()
    sources: tuple[str, ...] = ()


def check_hello(
    hello: Hello, *, vocab_fingerprint: str, weights_fingerprint: str = "", num_layers: int = 0
) -> None:
    """Raise `HandshakeError` unless the drafter may speak to a verifier of this model.

    `num_layers`: its decoder layers.
    """
    if hello.protocol_version not in SPOKEN_VERSIONS:
        spoken = " and ".join(map(str, SPOKEN_VERSIONS))
        raise HandshakeError(
            f"protocol version {hello.protocol_version} is not spoken here, only {spoken}; "
            "run drafter and verifier of the same release"
        )
    if not 1 <= len(hello.drafter_id) <= MAX_DRAFTER_ID:
        raise HandshakeError(
            f"drafter_id must have 1 to {MAX_DRAFTER_ID} characters, got {len(hello.drafter_id)}"
        )
    if hello.feedback_top_k > MAX_FEEDBACK_TOP_K:
        raise HandshakeError(f"feedback_top_k is at most {MAX_FEEDBACK_TOP_K}, got {hello.feedback_top_k}")
    if hello.vocab_fingerprint and hello.vocab_fingerprint != vocab_fingerprint:
        raise HandshakeError(
            f"the drafter's vocabulary {hello.vocab_fingerprint} is not the target's {vocab_fingerprint}; "
            "its model must use the target's tokenizer"
        )
    if len(hello.features) > MAX_REQUESTS:
        raise HandshakeError(f"features holds more than {MAX_REQUESTS} requests")
    for request in hello.features:
        _check_request(request)
        fits = request.weights_fingerprint in ("", weights_fingerprint)
        if fits and request.layers[-1] > num_layers:
            raise HandshakeError(
                f"features asks for layer {request.layers[-1]}; the target's last one is {num_layers}"
            )
    _check_sources(hello.sources)


def _check_request(request: FeatureRequest) -> None:
    layers = request.layers
    if not 1 <= len(layers) <= MAX_LAYERS:
        raise HandshakeError(
            f"a feature request must name 1 to {MAX_LAYERS} layers, not {'more' if layers else 'none'}"
        )
    if list(layers) != sorted(set(layers)):
        raise HandshakeError(f"layers of a feature request must ascend, got {list(layers)}")
    if not MIN_WINDOW_BYTES <= request.window_bytes <= MAX_WINDOW_BYTES:
        raise HandshakeError(
            f"window_bytes must be {MIN_WINDOW_BYTES} to {MAX_WINDOW_BYTES}, got {request.window_bytes}"
        )
    if request.weights_fingerprint and not _WEIGHTS.fullmatch(request.weights_fingerprint):
        raise HandshakeError(
            "weights_fingerprint of a feature request must be empty or 32 hex digits in lower case"
        )


def _check_sources(sources: Sequence[str]) -> None:
    if len(sources) > MAX_SOURCES:
        raise HandshakeError(f"sources holds more than {MAX_SOURCES} names")
    for number, name in enumerate(sources):
        if not METHOD_NAME.fullmatch(name):
            raise HandshakeError(f"source {number} must have 1 to 32 characters of a-z 0-9 _ -")
    if len(set(sources)) < len(sources):
        raise HandshakeError("sources holds a name twice")
