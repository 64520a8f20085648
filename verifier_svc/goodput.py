"""Whether drafting pays at all under this load: what drafted and plain steps really brought.

The budget's model of costs can be wrong, about a machine that drafters share with the engine for one. So
the tokens per second that steps with trees and steps without gave are kept for every load, and where plain
decoding was faster the budget is 0. Now and then the other kind gets a turn, so that both stay known (the
bandit of Nightjar, arXiv 2512.22420, with the arms "draft" and "do not").
"""

from __future__ import annotations

from dataclasses import dataclass

# Share of a step in the means; of so many steps each kind must have been seen to judge.
_WEIGHT = 0.05
_ENOUGH = 8
# Steps between two turns of the slower kind, and how long such a turn is. Trees take a step to arrive.
_PERIOD = 128
_PLAIN_TURN = 2
_DRAFTED_TURN = 6


@dataclass(slots=True)
class _Mean:
    tokens: float = 0.0
    seconds: float = 0.0
    count: int = 0

    def add(self, tokens: float, seconds: float) -> None:
        # A plain mean until there are enough: a running one would keep its first step for long.
        weight = max(_WEIGHT, 1 / (self.count + 1))
        self.tokens += weight * (tokens - self.tokens)
        self.seconds += weight * (seconds - self.seconds)
        self.count += 1

    @property
    def rate(self) -> float:
        return self.tokens / self.seconds if self.seconds else 0.0


class _Load:
    """One range of session counts."""

    def __init__(self) -> None:
        self.plain, self.drafted = _Mean(), _Mean()
        self.steps = 0


class Goodput:
    """Drafted against plain steps, by load. Not locked itself."""

    def __init__(self) -> None:
        self._loads: dict[int, _Load] = {}

    def _load(self, sessions: int) -> _Load:
        return self._loads.setdefault(sessions.bit_length(), _Load())

    def observe(self, sessions: int, *, drafted: bool, tokens: int, seconds: float) -> None:
        """Note a step of decoding sessions only. `seconds` from the end of the step before."""
        load = self._load(sessions)
        load.steps += 1
        (load.drafted if drafted else load.plain).add(tokens, seconds)

    def drafting(self, sessions: int) -> bool:
        """Whether the next step may verify trees."""
        load = self._load(sessions)
        turn = load.steps % _PERIOD
        if load.drafted.count < _ENOUGH:
            return True
        if load.plain.count < _ENOUGH:
            return False
        if load.drafted.rate >= load.plain.rate:
            return turn >= _PLAIN_TURN
        return turn < _DRAFTED_TURN
