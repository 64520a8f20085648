"""Chooses a session's verifier: the one with the least predicted time to the session's first token.

    seconds = (tokens that wait there + tokens of the prompt that are not in its KV + 2 * tokens that its free
               KV lacks) * seconds per prompt token + seconds of a step with the session in it

So affinity has a price in seconds: a verifier that holds the prompt's beginning is chosen as long as its
queue costs less than computing the beginning elsewhere, and a hot beginning spreads when its verifier is
busy. Predictions that differ by less than they are worth count as one; then fewer tokens to compute decide
(work that is saved is saved for everybody), then the smaller share of places taken, and last a hash of the
prompt's beginning and the address, so that all gateways send the same beginnings to the same verifiers
before anything is known.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from enum import StrEnum

from gateway.routing.texts import RoutedText
from gateway.routing.views import VerifierView

# Taken where a verifier has said nothing of its costs.
_TOKEN_SECONDS, _STEP_SECONDS = 0.001, 0.03
# Tokens that do not fit into the KV are computed twice: by who gives way, and when they come back.
_SHORT_OF_KV = 2
# Predictions within this of the least are equal.
_EQUAL_SHARE, _EQUAL_SECONDS = 0.05, 0.001


class Reason(StrEnum):
    """Why a verifier was chosen."""

    # No other could take the session.
    ONLY = "only"
    # It holds as much of the prompt as any, and something.
    PREFIX = "prefix"
    # One that holds more of the prompt would have taken longer.
    LOAD = "load"
    # None holds any of the prompt.
    ROOM = "room"


@dataclass(frozen=True, slots=True)
class Choice:
    """The verifier that a session goes to, and why."""

    verifier: VerifierView
    reason: Reason
    # Tokens of the prompt that it is believed to hold.
    held_tokens: int
    # Predicted seconds to the first token.
    seconds: float


def choose_verifier(
    verifiers: Sequence[VerifierView], model_id: str, text: RoutedText, avoid: Collection[str] = ()
) -> Choice | None:
    """The best verifier of `model_id` with a free place for a session with `text`; None if all are full.

    One in `avoid`, which has failed this session, is taken only if there is no other.
    """
    able = [
        pod
        for pod in verifiers
        if pod.healthy
        and not (pod.draining or pod.misfit)
        and pod.model_id == model_id
        and pod.sessions < pod.max_sessions
    ]
    able = [pod for pod in able if pod.address not in avoid] or able
    if not able:
        return None
    rated = [_rate(pod, text) for pod in able]
    least = min(seconds for _, _, seconds in rated)
    equal = [rate for rate in rated if rate[2] <= least * (1 + _EQUAL_SHARE) + _EQUAL_SECONDS]
    pod, held, seconds = min(
        equal,
        key=lambda rate: (-rate[1], rate[0].sessions / rate[0].max_sessions, _tie(text, rate[0].address)),
    )
    return Choice(pod, _reason(held, [other for _, other, _ in rated]), held, seconds)


def _rate(pod: VerifierView, text: RoutedText) -> tuple[VerifierView, int, float]:
    """The verifier, the tokens of the prompt that it holds, and predicted seconds to the first token."""
    held = pod.texts.held_tokens(text) if pod.texts is not None else 0
    own = text.tokens - held
    tokens = pod.waiting_tokens + own + _SHORT_OF_KV * max(0, own - pod.kv_free)
    step = (pod.step_seconds or _STEP_SECONDS) + pod.session_seconds
    return pod, held, tokens * (pod.prompt_token_seconds or _TOKEN_SECONDS) + step


def _reason(held: int, others: Sequence[int]) -> Reason:
    if len(others) == 1:
        return Reason.ONLY
    if held < max(others):
        return Reason.LOAD
    return Reason.PREFIX if held else Reason.ROOM


def _tie(text: RoutedText, address: str) -> bytes:
    """Rendezvous hashing: of any set of verifiers, one has the least for this beginning."""
    return hashlib.sha256(f"{list(text.beginning)} {address}".encode()).digest()
