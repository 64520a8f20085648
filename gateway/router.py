"""Choose a session's verifier and drafter: pure functions of what the fleet says of itself."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class VerifierView:
    """What routing needs to know of a verifier."""

    address: str
    healthy: bool
    draining: bool
    model_id: str
    vocab_size: int
    max_context: int
    sessions: int
    max_sessions: int
    # Why this gateway may give it no session; empty when it may.
    misfit: str = ""


@dataclass(frozen=True, slots=True)
class DrafterView:
    """What routing needs to know of a drafter."""

    address: str
    healthy: bool
    draining: bool
    sessions: int
    max_sessions: int


def choose_verifier(
    verifiers: Sequence[VerifierView], model_id: str, avoid: Collection[str] = ()
) -> VerifierView | None:
    """The verifier of `model_id` with the smallest share of its sessions taken; None when none can.

    One in `avoid` (it has just failed this session) is taken only when there is no other.
    """
    able = [
        pod
        for pod in verifiers
        if pod.healthy
        and not (pod.draining or pod.misfit)
        and pod.model_id == model_id
        and pod.sessions < pod.max_sessions
    ]
    return min(
        able,
        key=lambda pod: (pod.address in avoid, pod.sessions / pod.max_sessions, pod.address),
        default=None,
    )


def choose_drafter(
    drafters: Sequence[DrafterView], avoid: Collection[str] = (), aside: Collection[str] = ()
) -> DrafterView | None:
    """The drafter with the fewest sessions; None when none can take one more.

    One whose address is in `avoid` is taken only when there is no other, one whose is in `aside` never.
    """
    able = [
        pod
        for pod in drafters
        if pod.healthy and not pod.draining and pod.sessions < pod.max_sessions and pod.address not in aside
    ]
    return min(able, key=lambda pod: (pod.address in avoid, pod.sessions, pod.address), default=None)
