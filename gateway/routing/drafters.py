"""Chooses a session's drafter: by what drafters have brought, and among equals the one with fewest sessions.

A drafter's record is accepted tokens per step against what is usual at the same verifier. One whose record,
at its best, is below another's mean gets no sessions until time has made the record doubtful. One without
much of a record is tried by a few sessions at a time, however many others have.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from enum import StrEnum

from gateway.routing.views import DrafterView

# Sessions that make a record.
_PROVEN = 3.0
# Most sessions that one without a record is tried with: this many, or this share of all.
_TRIAL, _TRIAL_SHARE = 2, 0.1


class Reason(StrEnum):
    """Why a drafter was chosen."""

    # No other could take the session.
    ONLY = "only"
    # Its record is among the best.
    BENEFIT = "benefit"
    # It has no record yet, or an old one.
    TRIAL = "trial"
    # No drafter has a record.
    ROOM = "room"


@dataclass(frozen=True, slots=True)
class Choice:
    """The drafter that a session gets, and why."""

    drafter: DrafterView
    reason: Reason


def choose_drafter(
    drafters: Sequence[DrafterView], avoid: Collection[str] = (), aside: Collection[str] = ()
) -> Choice | None:
    """The best drafter with a free place; None if all are full.

    One whose address is in `avoid` is taken only if there is no other; one in `aside` never.
    """
    able = [
        pod
        for pod in drafters
        if pod.healthy and not pod.draining and pod.sessions < pod.max_sessions and pod.address not in aside
    ]
    able = [pod for pod in able if pod.address not in avoid] or able
    if not able:
        return None
    best = max(
        (pod.benefit.mean for pod in able if pod.benefit is not None and _proven(pod)), default=-float("inf")
    )
    trial = max(_TRIAL, _TRIAL_SHARE * sum(pod.sessions for pod in able))
    good = [pod for pod in able if _proven(pod) and pod.benefit is not None and pod.benefit.at_best >= best]
    tried = [pod for pod in able if not _proven(pod) and (not good or pod.sessions < trial)]
    # Where sessions come one by one, all drafters have none of them: the untried one would never be tried.
    chosen = min(good + tried, key=lambda pod: (pod.sessions, _proven(pod), pod.address))
    if len(able) == 1:
        reason = Reason.ONLY
    elif not good:
        reason = Reason.ROOM
    else:
        reason = Reason.BENEFIT if _proven(chosen) else Reason.TRIAL
    return Choice(chosen, reason)


def _proven(pod: DrafterView) -> bool:
    return pod.benefit is not None and pod.benefit.weight >= _PROVEN
