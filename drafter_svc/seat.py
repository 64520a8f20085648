"""What a drafter keeps of one session beside its ids: what it was asked, sent, and told of hidden states."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from drafter_svc.draft_trace import DraftTrace
from drafter_svc.hypothesis import Hypothesis
from paceline.features import NO_FEATURES
from paceline.tree import TokenTree

# Seconds between two times that a session's states are asked for anew: a method that loses them again and
# again has no room for them.
_AGAIN_SECONDS = 1.0


@dataclass(slots=True)
class Sent:
    """The trees of one source on the newest text that it drafted for, of `length` ids."""

    length: int = -1
    tree: TokenTree = field(default_factory=TokenTree)
    # Whether the larger tree, drafted ahead, is among them.
    ahead: bool = False


@dataclass(slots=True)
class States:
    """How far the verifier has sent a session's hidden states, and what is known of what methods lack."""

    # The next position that is to come.
    next: int = NO_FEATURES
    # Chunks that methods have not taken in yet.
    under_way: int = 0
    # When they were asked for anew.
    asked_at: float = 0.0
    # Verdicts since then, of which the first answers the join; None once all states have come.
    verdicts: int | None = None

    def reach(self, position: int) -> bool:
        """Whether all states before `position` have come."""
        return position <= self.next != NO_FEATURES

    def asked(self, position: int) -> None:
        """The verifier is asked for all from `position` on."""
        self.next, self.asked_at = position, time.monotonic()
        self.verdicts = None if position == NO_FEATURES else 0

    def heard(self) -> None:
        """A verdict came."""
        if self.verdicts is not None:
            self.verdicts += 1

    def caught_up(self, length: int) -> int | None:
        """Steps since they were asked for, if all of a text of `length` ids have come for the first time."""
        if self.verdicts is None or not self.reach(length - 1):
            return None
        steps, self.verdicts = max(0, self.verdicts - 1), None
        return steps

    def came(self, position: int, count: int) -> bool:
        """A chunk came. Whether it is of use: it goes on where the last one ended, or covers that place."""
        if not position <= self.next < position + count:
            return False
        self.next = position + count
        return True

    def ask_from(self, lacked: Sequence[int | None]) -> int | None:
        """Where to ask anew from, given what each method lacks; None where what comes is what they want."""
        if self.under_way or time.monotonic() - self.asked_at < _AGAIN_SECONDS:
            return None
        wanted = first_lacked(lacked)
        return wanted if wanted < self.next or wanted == NO_FEATURES != self.next else None


def first_lacked(lacked: Sequence[int | None]) -> int:
    """The first position of which any method lacks states, given what each says."""
    return min((position for position in lacked if position is not None), default=NO_FEATURES)


@dataclass(slots=True)
class Seat:
    """A session, when it was last heard of, and its draft budget: None until a verdict says it."""

    hypothesis: Hypothesis
    heard: float
    # By number of the source.
    sent: list[Sent]
    budget: int | None = None
    rejoined: bool = False
    # When it began to wait for trees, by `time.perf_counter()`.
    waiting_since: float = 0.0
    # Whether a tree that the last verdict asked for has given its place to a join.
    joined_again: bool = False
    # None unless its trace is recorded.
    trace: DraftTrace | None = None
    states: States = field(default_factory=States)
    # Sources that draft no more for this session.
    failed: set[int] = field(default_factory=set)

    def accepted(self, number: int, base: int, committed: Sequence[int]) -> int:
        """How many of the accepted ids after `base` a source's last tree had, from the first on."""
        sent = self.sent[number]
        if not 0 <= sent.length <= base:
            return 0
        tree = sent.tree.reroot(self.hypothesis.ids[sent.length : base])
        node, count = -1, 0
        for token in committed:
            child = tree.child(node, token)
            if child is None:
                break
            node, count = child, count + 1
        return count
