"""What one session's drafter was asked for and has answered, by source."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

# Requests for trees that are remembered for a session, to measure how long an answer takes.
ASKED_TREES = 4
# Share of a request in the mean of those that a source answers.
_WEIGHT = 0.2


@dataclass(frozen=True, slots=True)
class Answer:
    """A source's first answer to a request, `seconds` after it."""

    source: int
    seconds: float
    # Of these, seconds since another source had answered. Over all sources of a request they add up to the
    # time until the last one's answer.
    longer: float


@dataclass(slots=True)
class Ask:
    """A request for a tree: when it was made, which sources have answered, and when the last of them did."""

    since: float
    answered: set[int] = field(default_factory=set)
    until: float = 0.0


@dataclass(slots=True)
class Asks:
    """The last requests, by the length of the text that trees are to hang on."""

    # Sources that have sent a tree for the session, whether it was asked for or came beside the join.
    heard: set[int] = field(default_factory=set)
    _asks: dict[int, Ask] = field(default_factory=dict)
    _rates: dict[int, float] = field(default_factory=dict)

    def ask(self, length: int, now: float) -> None:
        """A tree on a text of `length` is asked for."""
        self._asks[length] = Ask(now)
        if len(self._asks) > ASKED_TREES:
            forgotten = self._asks.pop(min(self._asks))
            for source, rate in self._rates.items():
                if source not in forgotten.answered:
                    self._rates[source] = rate - _WEIGHT * rate

    def on(self, length: int) -> Ask | None:
        """The request for trees on a text of `length`."""
        return self._asks.get(length)

    def answered(self, base: int, sources: Iterable[int], now: float) -> list[Answer]:
        """A tree of these sources on the first `base` ids came; which of them had not answered for it yet."""
        sources = set(sources)
        self.heard |= sources
        ask = self._asks.get(base)
        if ask is None:
            return []
        answers: list[Answer] = []
        for source in sorted(sources - ask.answered):
            rate = self.rate(source)
            self._rates[source] = rate + _WEIGHT * (1 - rate)
            answers.append(Answer(source, now - ask.since, now - max(ask.since, ask.until)))
            ask.answered.add(source)
            ask.until = now
        return answers

    def rate(self, source: int) -> float:
        """Share of the last requests that the source answered, in time or late; 1 where none was answered.

        Of a source that has been heard: of others nothing is expected.
        """
        return self._rates.get(source, 1.0)
