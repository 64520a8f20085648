"""The fleet as this gateway sees it, counted at each scrape."""

from __future__ import annotations

from enum import StrEnum
from functools import partial

from gateway import metrics
from gateway.fleet import Fleet
from gateway.pod import Pod
from paceline.net.roles import Role


class State(StrEnum):
    """What a gateway can do with a pod."""

    # It gets sessions.
    UP = "up"
    # It is being stopped: it gets no more sessions.
    DRAINING = "draining"
    # It serves another model, or has another tokenizer.
    MISFIT = "misfit"
    # It answers, and its engine hangs.
    STALLED = "stalled"
    # It does not answer, or has not yet.
    DOWN = "down"


def state_of(pod: Pod) -> State:
    """What this gateway can do with the pod now."""
    if pod.endpoint.going:
        # That it answers no more is to be expected.
        return State.DRAINING
    status = pod.status
    if status is not None and getattr(status, "stalled", False):
        return State.STALLED
    if status is None or not pod.healthy:
        return State.DOWN
    if status.draining:
        return State.DRAINING
    return State.MISFIT if pod.misfit else State.UP


def export(fleet: Fleet) -> None:
    """Let each scrape count the fleet's pods."""
    for role in (Role.VERIFIER, Role.DRAFTER):
        for state in State:
            metrics.FLEET_PODS.labels(role=role.value, state=state.value).set_function(
                partial(_count, fleet, role, state)
            )


def _count(fleet: Fleet, role: Role, state: State) -> int:
    pods = fleet.verifiers if role is Role.VERIFIER else fleet.drafters
    # A copy: scrapes come on a thread of their own.
    return sum(state_of(pod) is state for pod in list(pods.values()))
