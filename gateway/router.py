"""Chooses a session's verifier and drafter: pure functions of the fleet's status."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class VerifierView:
    """A verifier, as routing sees it."""

    address: str
    healthy: bool
    draining: bool
    model_id: str
    vocab_size: int
    max_context: int
    sessions: int
    max_sessions: int
    # Why it gets no session of this gateway; empty if it may get some.
    misfit: str = ""


@dataclass(frozen=True, slots=True)
class DrafterView:
    """A drafter, as routing sees it."""

    address: str
    healthy: bool
    draining: bool
    sessions: int
    max_sessions: int


def choose_verifier(
    verifiers: Sequence[VerifierView], model_id: str, avoid: Collection[str] = ()
) -> VerifierView | None:
    """The verifier of `model_id` with the smallest share of its places taken; None if all are full.

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
    return min(
        able,
        key=lambda pod: (pod.address in avoid, pod.sessions / pod.max_sessions, pod.address),
        default=None,
    )


def choose_drafter(
    drafters: Sequence[DrafterView], avoid: Collection[str] = (), aside: Collection[str] = ()
) -> DrafterView | None:
    """The drafter with the fewest sessions; None if all are full.

    One whose address is in `avoid` is taken only if there is no other; one in `aside` never.
    """
    able = [
        pod
        for pod in drafters
        if pod.healthy and not pod.draining and pod.sessions < pod.max_sessions and pod.address not in aside
    ]
    return min(able, key=lambda pod: (pod.address in avoid, pod.sessions, pod.address), default=None)
