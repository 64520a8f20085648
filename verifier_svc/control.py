"""How much drafters are asked for and how long a step waits for trees, by what earlier steps have taught."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from paceline.tree import TokenTree
from verifier_svc.asks import Answer
from verifier_svc.budget import DraftBudget
from verifier_svc.cost import StepCost
from verifier_svc.drafting import Ready
from verifier_svc.isolation import Drawn
from verifier_svc.learning import learn
from verifier_svc.readiness import ready
from verifier_svc.scheduler import Plan
from verifier_svc.sessions import Session, SessionTable
from verifier_svc.waiting import Held, TreeWait


@dataclass(frozen=True, slots=True)
class Waited:
    """How long a step waited for trees; 0 where there was nothing to wait for."""

    seconds: float = 0.0
    # The time in which trees of single sessions were waited for, summed over sessions.
    session_seconds: float = 0.0


class DraftControl:
    """The drafting of all sessions of one verifier. Hold the table's lock to call a method."""

    def __init__(
        self, table: SessionTable, *, draft_rows: int, max_tree_nodes: int, max_wait_seconds: float
    ) -> None:
        """`draft_rows`: most rows of trees and roots in a step, which waits at most `max_wait_seconds`."""
        self.budget = DraftBudget(StepCost({}, 0.0), draft_rows=draft_rows, max_nodes=max_tree_nodes)
        self.draft_rows = draft_rows
        # Nodes that each drafting session is asked for in this step.
        self.nodes_asked = max_tree_nodes
        self._table = table
        self._wait = TreeWait()
        self._max_wait_seconds = max_wait_seconds

    def nodes_for(self, session: Session) -> int:
        """Nodes that the session's next tree may have; none before its last token, which is the target's."""
        if session.max_draft_depth < 1:
            return 0
        nodes = self.nodes_asked or self.budget.probe(session.steps, sessions=len(self._table))
        return min(nodes, session.limits.max_nodes) if session.limits.max_nodes else nodes

    def wants_tree(self, session: Session) -> bool:
        """Whether a tree for the session's next step is expected to pay, whoever might draft it."""
        return self.nodes_asked > 0 and session.max_draft_depth >= 1 and not session.plain

    def stepped(self, session: Session, *, nodes: int) -> None:
        """A step of the session is over; its drafter is asked for a tree of `nodes`, or for none if 0."""
        session.drafting.wanted = self.wants_tree(session)
        if nodes:
            self._wait.asked(session)

    def came(self, session: Session, base: int, tree: TokenTree) -> list[Answer]:
        """A tree that was checked came for the session; it hangs on the first `base` ids.

        Returns what of it was asked for, by source.
        """
        answers = self._wait.came(session, tree, base)
        self._table.lock.notify_all()
        return answers

    def forget(self, stream_id: int) -> None:
        """Drop what was learned of a drafter whose stream has ended."""
        self.budget.forget(stream_id)
        self._wait.forget(stream_id)

    def await_trees(self, stopping: Callable[[], bool]) -> Waited:
        """Wait while trees are on their way and waiting for them pays; releases the lock meanwhile."""
        if not self._max_wait_seconds:
            return Waited()
        # A step decides anew with every tree that comes, and most sessions have what they had.
        known: dict[str, tuple[Ready, Held | None]] = {}

        def held(session: Session) -> Held | None:
            there = ready(session, self.budget)
            before = known.get(session.key.session_id)
            if before is None or before[0] is not there:
                before = known[session.key.session_id] = there, self._held(there)
            return before[1]

        waited = 0.0
        began = time.monotonic()
        awaited = [session for session in self._table.running() if self._wait.awaited(session)]
        while not stopping():
            limit = self._max_wait_seconds - waited
            seconds = self._wait.seconds(self._table.running(), limit=limit, held=held)
            if seconds <= 0:
                break
            self._table.lock.wait(timeout=seconds)
            waited = time.monotonic() - began
        if not waited:
            return Waited()
        return Waited(waited, sum(self._wait.exposed(session, waited) for session in awaited))

    def _held(self, there: Ready) -> Held | None:
        """What a session has for its next step, if any tree fits."""
        if not there.tree.tokens:
            return None
        row = self.budget.row_tokens
        gain = sum(max(0.0, math.exp(survival) - row) for survival in there.tree.survivals())
        return Held(gain, frozenset().union(*(offer.sources for offer in there.fitting)))

    def ask(self, sessions: Sequence[Session]) -> None:
        """Decide how many nodes each drafting session is asked for in the step that `sessions` take now."""
        blocks = sum(len(session.blocks) for session in sessions)
        self.nodes_asked = self.budget.ask(len(sessions), blocks=blocks)

    def learn(self, planned: Plan, drawn: Drawn, seconds: float, *, block_size: int) -> None:
        """Refine the costs and the expected gains by a step that took `seconds`."""
        accepted = [(row, decision.path) for row, decision in drawn]
        learn(planned, accepted, seconds, block_size=block_size, budget=self.budget, wait=self._wait)
