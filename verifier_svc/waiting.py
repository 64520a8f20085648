"""Whether the next step waits for trees that are on their way, and how long.

A step that starts now yields one token per session, plus what its trees gain; each second of waiting costs
that rate. A drafter's delay is measured from the request for a tree, and from late trees too: an estimate
from trees in time alone would stay too short for ever.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from paceline.tree import TokenTree
from verifier_svc.budget import PROBE_STEPS
from verifier_svc.drafting import HOPED_GAIN
from verifier_svc.sessions import Session

# Mean delays after which a tree is overdue, and seconds after which its drafter is taken not to answer.
PATIENCE = 3
GIVE_UP_SECONDS = 0.25
# Share of a new measurement in the means.
_WEIGHT = 0.2
# Least share of a new tree in a session's mean gain. Single trees' gains differ widely: with a shorter memory
# three unlucky trees would look like a text that cannot be drafted.
_GAIN_WEIGHT = 0.03
# Trees that the assumed gain counts as.
_HOPED_TREES = 5
# Longest delay that counts, in seconds.
_LONGEST_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Awaited:
    """A session whose tree is on its way."""

    # Mean tokens that a tree of this session gains, less those that its rows cost; at least 0.
    gain_tokens: float
    # Seconds until it is expected, and until it is overdue.
    expected_in: float
    overdue_in: float


class TreeWait:
    """Which sessions' trees are on their way at one verifier. Not locked itself."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._reply_seconds = 0.005
        self._step_seconds = 0.05

    def asked(self, session: Session) -> None:
        """A tree on all of the session's ids is asked for now."""
        session.drafting.asked(session.length, self._clock())

    def came(self, session: Session, tree: TokenTree, base: int) -> None:
        """A tree on the session's first `base` ids came in."""
        seconds = session.drafting.came(tree, base, length=session.length, now=self._clock())
        if seconds is not None:
            reply = min(seconds, _LONGEST_SECONDS)
            self._reply_seconds += _WEIGHT * (reply - self._reply_seconds)

    def verified(self, session: Session, gain: float) -> None:
        """A tree of the session was verified; it gained `gain` tokens more than its rows cost."""
        share = max(_GAIN_WEIGHT, 1 / (_HOPED_TREES + session.drafted_steps))
        session.drafting.tree_gain += share * (gain - session.drafting.tree_gain)

    def stepped(self, seconds: float) -> None:
        """A step would have taken `seconds` without trees."""
        self._step_seconds += _WEIGHT * (seconds - self._step_seconds)

    def seconds(self, running: Sequence[Session], *, limit: float) -> float:
        """Seconds to wait for another tree before `running` sessions step; 0 to step now.

        Nobody waits while a session has its prompt to compute.
        """
        if any(not session.decoding for session in running):
            return 0.0
        now = self._clock()
        mean = self._reply_seconds
        waits = [
            (session, now - session.drafting.awaited_since)
            for session in running
            if session.drafting.awaited_since and session.drafting.stream_id
        ]
        return wait_seconds(
            [
                # A late tree is taken to be as far away as one that was just asked for.
                Awaited(
                    _gain_of_waiting(session),
                    mean - waited if waited < mean else mean,
                    PATIENCE * mean - waited,
                )
                for session, waited in waits
                if waited < min(PATIENCE * mean, GIVE_UP_SECONDS)
            ],
            ready_gain=sum(
                max(0.0, session.drafting.tree_gain)
                for session in running
                if session.drafting.tree is not None
            ),
            sessions=len(running),
            step_seconds=self._step_seconds,
            limit=limit,
        )


def _gain_of_waiting(session: Session) -> float:
    """Tokens that the session's next tree is expected to gain, less what its rows cost; at least 0.

    Trees that nobody waits for come late and teach nothing. So once in `PROBE_STEPS` steps the gain is
    assumed to be what it was at the beginning.
    """
    return max(0.0, session.drafting.tree_gain, HOPED_GAIN if session.steps % PROBE_STEPS == 0 else 0.0)


def wait_seconds(
    awaited: Sequence[Awaited], *, ready_gain: float, sessions: int, step_seconds: float, limit: float
) -> float:
    """Seconds that the next step may wait for trees; 0 when waiting is expected to cost more than it gains.

    A step that starts now yields one token per session plus `ready_gain`; every second of waiting costs
    that rate. Trees are taken in order of arrival while the rate with the tree, (tokens + gain) /
    (step + wait), is higher than without it.
    """
    tokens = sessions + ready_gain
    best_rate = tokens / step_seconds
    best_wait = 0.0
    for tree in sorted(awaited, key=lambda tree: tree.expected_in):
        wait = tree.expected_in
        if wait > limit:
            break
        tokens += tree.gain_tokens
        rate = tokens / (step_seconds + wait)
        if rate > best_rate:
            best_rate, best_wait = rate, max(best_wait, tree.overdue_in)
    return min(best_wait, limit)
