"""Whether the next step waits for trees that are on their way, and how long.

A step that starts now yields one token per session, plus what its trees gain; each second of waiting costs
that rate. A source's delay is measured from the request for a tree, and from late trees too: an estimate
from trees in time alone would stay too short for ever. A session that has a tree is waited for where another
source's tree, or a newer one of the same source, is expected to add enough. A source of which a session never
had a tree is not waited for: it may lack states or room for it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from paceline.tree import TokenTree
from verifier_svc.asks import Answer
from verifier_svc.budget import PROBE_STEPS
from verifier_svc.drafting import HOPED_GAIN
from verifier_svc.replies import Replies
from verifier_svc.sessions import Session

# Mean delays after which a tree is overdue, and seconds after which its drafter is taken not to answer.
PATIENCE = 3
GIVE_UP_SECONDS = 0.25
# Share of a new measurement in the mean.
_WEIGHT = 0.2
# Least share of a new tree in a session's mean gains. Single trees' gains differ widely: with a shorter
# memory three unlucky trees would look like a text that cannot be drafted.
_GAIN_WEIGHT = 0.03
# Trees that the assumed gain counts as.
_HOPED_TREES = 5


@dataclass(frozen=True, slots=True)
class Awaited:
    """A session's tree that is on its way."""

    # Tokens that it is expected to gain, less those that its rows cost; at least 0.
    gain_tokens: float
    # Seconds until it is expected, and until it is overdue.
    expected_in: float
    overdue_in: float


@dataclass(frozen=True, slots=True)
class Held:
    """What a session has for its next step."""

    # Tokens that it is expected to gain, less those that its rows cost.
    gain_tokens: float
    # Sources that have nodes in it.
    sources: frozenset[int]


@dataclass(frozen=True, slots=True)
class Gained:
    """What trees in time brought a session's step, less what their rows cost, in tokens."""

    tokens: float
    # What each of the sources alone brought of it: without it the others would have brought that much less.
    by_source: Mapping[int, float]


class TreeWait:
    """Which sessions' trees are on their way at one verifier. Not locked itself."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._replies = Replies()
        self._step_seconds = 0.05

    def asked(self, session: Session) -> None:
        """A tree on all of the session's ids is asked for now."""
        session.drafting.asks.ask(session.length, self._clock())

    def came(self, session: Session, tree: TokenTree, base: int) -> list[Answer]:
        """A tree on the session's first `base` ids came in. Returns what of it was asked for, by source."""
        answers = session.drafting.came(tree, base, now=self._clock())
        for answer in answers:
            self._replies.took(session.drafting.stream_id, answer.source, answer.seconds)
        return answers

    def forget(self, stream_id: int) -> None:
        """Drop what was learned of a drafter whose stream has ended."""
        self._replies.forget(stream_id)

    def verified(self, session: Session, gained: Gained) -> None:
        """Trees of the session were verified."""
        drafting = session.drafting
        share = max(_GAIN_WEIGHT, 1 / (_HOPED_TREES + session.drafted_steps))
        drafting.tree_gain += share * (gained.tokens - drafting.tree_gain)
        for source, tokens in gained.by_source.items():
            before = drafting.source_gains.get(source, HOPED_GAIN)
            drafting.source_gains[source] = before + share * (tokens - before)

    def stepped(self, seconds: float) -> None:
        """A step would have taken `seconds` without trees."""
        self._step_seconds += _WEIGHT * (seconds - self._step_seconds)

    def awaited(self, session: Session) -> bool:
        """Whether a tree of the session is on its way."""
        return next(self._on_their_way(session), None) is not None

    def exposed(self, session: Session, waited: float) -> float:
        """For how much of the last `waited` seconds trees of the session were waited for."""
        ask = session.drafting.asks.on(session.length)
        if ask is None or self.awaited(session):
            return waited
        return min(waited, max(0.0, waited - (self._clock() - ask.until)))

    def seconds(
        self,
        running: Sequence[Session],
        *,
        limit: float,
        held: Callable[[Session], Held | None] = lambda session: None,
    ) -> float:
        """Seconds to wait for another tree before `running` sessions step; 0 to step now.

        `held`: what a session has already. Nobody waits while a session has its prompt to compute.
        """
        if any(not session.decoding for session in running):
            return 0.0
        on_their_way = [list(self._on_their_way(session)) for session in running]
        if not any(on_their_way):
            return 0.0
        awaited: list[Awaited] = []
        ready_gain = 0.0
        for session, trees in zip(running, on_their_way, strict=True):
            there = held(session)
            ready_gain += 0.0 if there is None else max(0.0, there.gain_tokens)
            if trees:
                awaited += self._awaited(session, there, trees)
        return wait_seconds(
            awaited,
            ready_gain=ready_gain,
            sessions=len(running),
            step_seconds=self._step_seconds,
            limit=limit,
        )

    def _awaited(
        self, session: Session, held: Held | None, on_their_way: list[tuple[int, float, float]]
    ) -> Iterator[Awaited]:
        """What trees that are on their way are worth, in the order in which they are expected.

        Trees that nobody waits for come late and teach nothing. So once in `PROBE_STEPS` steps the gains are
        assumed to be at least what they were at the beginning.
        """
        drafting = session.drafting
        hoped = HOPED_GAIN if session.steps % PROBE_STEPS == 0 else 0.0
        gains = {
            source: max(0.0, hoped, drafting.source_gains.get(source, HOPED_GAIN))
            for source in drafting.asks.heard
        }
        whole = max(hoped, drafting.tree_gain)
        on_their_way.sort(key=lambda each: each[1])
        for place, (source, expected_in, overdue_in) in enumerate(on_their_way):
            gain = gains[source]
            if held is not None and source in held.sources:
                # A newer tree of a source whose earlier one still fits.
                gain = max(0.0, whole - held.gain_tokens)
            elif held is None and place == 0:
                gain = max(gain, whole - sum(gains.values()) + gain)
            yield Awaited(gain * drafting.asks.rate(source), expected_in, overdue_in)

    def _on_their_way(self, session: Session) -> Iterator[tuple[int, float, float]]:
        """Sources that will answer the last request: seconds until each is expected, and is overdue.

        A late tree is taken to be as far away as one that was just asked for.
        """
        drafting = session.drafting
        ask = drafting.asks.on(session.length)
        if ask is None or not drafting.stream_id:
            return
        waited = self._clock() - ask.since
        heard, wanted = drafting.asks.heard, drafting.wanted_sources
        for source, mean in self._replies.of(drafting.stream_id).items():
            if (
                source in heard
                and (wanted is None or source in wanted)
                and source not in ask.answered
                and waited < min(PATIENCE * mean, GIVE_UP_SECONDS)
            ):
                yield source, mean - waited if waited < mean else mean, PATIENCE * mean - waited


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
