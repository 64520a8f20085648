"""Which drafters are heard: one that sends garbage, floods or never helps is put aside for a while."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from paceline.service import telemetry
from paceline.service.metrics import begin
from verifier_svc import metrics

log = telemetry.logger(__name__)

# Trees and faults that are judged together.
JUDGED_TREES = 32
# Steps with a drafter's trees that are judged together, and the fewest accepted tokens in all of them. With a
# useful drafter every second or third step accepts one.
_STEPS = 512
_ACCEPTED = 8
# Trees that make a step fail, until their drafter is put aside. The first may have met a fault of ours.
HARMFUL_TREES = 3
# Seconds that a drafter is put aside at first, doubled each time, and at most.
_FIRST_SECONDS = 60.0
_LONGEST_SECONDS = 3600.0
# Most peers that are remembered (peers name themselves), and most that a status lists as put aside.
_MAX_PEERS = 1024
_MAX_TOLD = 256
# Shortest time between two log lines: a peer that reconnects can be put aside often.
_LOG_SECONDS = 1.0


class AsideReason(StrEnum):
    """Why a drafter is put aside."""

    GARBAGE = "most of its trees break a rule"
    FLOOD = "most of what it says nothing has asked for"
    USELESS = "next to nothing of what it drafts is accepted"
    HARMFUL = "the engine cannot compute its trees"


begin(metrics.DRAFTERS_PUT_ASIDE, (reason.name.lower() for reason in AsideReason))


@dataclass(slots=True)
class _Standing:
    name: str = ""
    sound: int = 0
    broken: int = 0
    unasked: int = 0
    steps: int = 0
    accepted: int = 0
    harmful: int = 0
    times: int = 0
    until: float = 0.0
    reason: AsideReason | None = None


class Standings:
    """The record of each drafter, by its peer name (`paceline.net.peers`). On the event loop.

    `on_aside` is called with each peer that is put aside.
    """

    def __init__(
        self, clock: Callable[[], float] = time.monotonic, on_aside: Callable[[str], None] = lambda peer: None
    ) -> None:
        self._clock = clock
        self._on_aside = on_aside
        self._standings: OrderedDict[str, _Standing] = OrderedDict()
        self._log_from = 0.0
        self._unlogged = 0

    def named(self, peer: str, name: str) -> None:
        """Note what a peer calls itself; for people only."""
        self._of(peer).name = name

    def tree(self, peer: str, *, sound: bool) -> None:
        """A tree came; `sound` where it broke no rule."""
        standing = self._of(peer)
        if sound:
            standing.sound += 1
        else:
            standing.broken += 1
        self._judge(peer, standing)

    def unasked(self, peer: str) -> None:
        """The peer sent something that nothing it was told can have caused."""
        standing = self._of(peer)
        standing.unasked += 1
        self._judge(peer, standing)

    def verified(self, peer: str, accepted: int) -> None:
        """A step verified one of the peer's trees and accepted `accepted` nodes."""
        standing = self._of(peer)
        standing.steps += 1
        standing.accepted += accepted
        if standing.steps >= _STEPS:
            if standing.accepted < _ACCEPTED:
                self._put_aside(peer, standing, AsideReason.USELESS)
            else:
                standing.times = standing.harmful = 0
            standing.steps = standing.accepted = 0

    def harmed(self, peer: str) -> None:
        """One of the peer's trees made a step fail."""
        standing = self._of(peer)
        standing.harmful += 1
        if standing.harmful >= HARMFUL_TREES:
            self._put_aside(peer, standing, AsideReason.HARMFUL)
            standing.harmful = 0

    def reason_aside(self, peer: str) -> AsideReason | None:
        """Why the peer is put aside now; None if it is not."""
        standing = self._standings.get(peer)
        return standing.reason if standing is not None and self._clock() < standing.until else None

    def seconds_aside(self, peer: str) -> float:
        """Seconds for which the peer stays put aside; 0 if it is not."""
        standing = self._standings.get(peer)
        return 0.0 if standing is None else max(0.0, standing.until - self._clock())

    def aside(self) -> list[str]:
        """Drafters that are put aside now, as "name (peer)": a name alone may be another's, too."""
        found = (f"{each.name} ({peer})" for peer, each in self._standings.items() if self.reason_aside(peer))
        return sorted(found)[:_MAX_TOLD]

    def _of(self, peer: str) -> _Standing:
        standing = self._standings.setdefault(peer, _Standing())
        self._standings.move_to_end(peer)
        if len(self._standings) > _MAX_PEERS:
            self._standings.popitem(last=False)
        return standing

    def _judge(self, peer: str, standing: _Standing) -> None:
        if standing.sound + standing.broken + standing.unasked < JUDGED_TREES:
            return
        if standing.broken + standing.unasked > standing.sound:
            worse = AsideReason.FLOOD if standing.unasked > standing.broken else AsideReason.GARBAGE
            self._put_aside(peer, standing, worse)
        standing.sound = standing.broken = standing.unasked = 0

    def _put_aside(self, peer: str, standing: _Standing, reason: AsideReason) -> None:
        seconds = min(_FIRST_SECONDS * 2**standing.times, _LONGEST_SECONDS)
        standing.times += 1
        standing.reason, standing.until = reason, self._clock() + seconds
        metrics.DRAFTERS_PUT_ASIDE.labels(reason=reason.name.lower()).inc()
        if self._clock() >= self._log_from:
            log.warning(
                "drafter put aside",
                drafter=standing.name,
                peer=peer,
                reason=str(reason),
                seconds=seconds,
                unlogged=self._unlogged,
            )
            self._log_from, self._unlogged = self._clock() + _LOG_SECONDS, 0
        else:
            self._unlogged += 1
        self._on_aside(peer)
