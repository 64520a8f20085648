"""A drafter's rounds with their method, driven as a stream drives them, without the stream."""

from __future__ import annotations

from collections.abc import Iterable

from drafter_svc.draft_trace import DraftTrace
from drafter_svc.hypothesis import Hypothesis
from drafter_svc.methods.base import Method
from drafter_svc.rounds import Counters, Message, Rounds, TreeLimits
from drafter_svc.runner import Runner
from paceline.verdict import Verdict


class DrivenRounds:
    """Answers each event with one message, trees included. The method must not compute."""

    def __init__(self, method: Method, limits: TreeLimits) -> None:
        self.counters = Counters()
        self.rounds = Rounds(self.counters)
        self._runner = Runner(method)
        self._limits = limits

    def welcome(self) -> Message:
        return self._with_trees(self.rounds.welcome([self._runner], self._limits))

    def attach(self, hypothesis: Hypothesis, trace: DraftTrace | None = None) -> Message:
        return self._with_trees(self.rounds.attach(hypothesis, trace))

    def verdicts(self, verdicts: Iterable[Verdict]) -> Message:
        message = self._with_trees(self.rounds.verdicts(verdicts))
        while self._runner.settle():
            pass
        return message

    def ahead(self) -> Message:
        """Larger trees for the sessions that have one on their present text."""
        return self.rounds.deliver(self._runner.draft_now(list(self.rounds.asks_ahead())), Message())

    def _with_trees(self, message: Message) -> Message:
        asks = self.rounds.asks() if self.rounds.vocab_size else []
        return self.rounds.deliver(self._runner.draft_now(asks), message)
