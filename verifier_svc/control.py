"""How much drafters are asked for and how long a step waits for trees, by what earlier steps have taught."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from paceline.tree import TokenTree
from verifier_svc.budget import DraftBudget
from verifier_svc.cost import StepCost
from verifier_svc.isolation import Drawn
from verifier_svc.learning import learn
from verifier_svc.scheduler import Plan
from verifier_svc.sessions import Session, SessionTable
from verifier_svc.waiting import TreeWait


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
        return self.nodes_asked or self.budget.probe(session.steps, sessions=len(self._table))

    def wants_tree(self, session: Session) -> bool:
        """Whether a tree for the session's next step is expected to pay, whoever might draft it."""
        return self.nodes_asked > 0 and session.max_draft_depth >= 1 and not session.plain

    def stepped(self, session: Session, *, nodes: int) -> None:
        """A step of the session is over; its drafter is asked for a tree of `nodes`, or for none if 0."""
        session.drafting.awaited_since = 0.0
        session.drafting.wanted = self.wants_tree(session)
        if nodes:
            self._wait.asked(session)

    def came(self, session: Session, base: int, tree: TokenTree) -> None:
        """A tree that was checked came for the session; it hangs on the first `base` ids."""
        self._wait.came(session, tree, base)
        self._table.lock.notify_all()

    def forget(self, stream_id: int) -> None:
        """Drop what was learned of a drafter whose stream has ended."""
        self.budget.forget(stream_id)

    def await_trees(self, stopping: Callable[[], bool]) -> float:
        """Wait while trees are on their way and waiting for them pays; releases the lock meanwhile.

        Returns the seconds that were waited; 0 where there was nothing to wait for.
        """
        if not self._max_wait_seconds:
            return 0.0
        waited = 0.0
        began = time.monotonic()
        while not stopping():
            seconds = self._wait.seconds(self._table.running(), limit=self._max_wait_seconds - waited)
            if seconds <= 0:
                break
            self._table.lock.wait(timeout=seconds)
            waited = time.monotonic() - began
        return waited

    def ask(self, sessions: Sequence[Session]) -> None:
        """Decide how many nodes each drafting session is asked for in the step that `sessions` take now."""
        blocks = sum(len(session.blocks) for session in sessions)
        self.nodes_asked = self.budget.ask(len(sessions), blocks=blocks)

    def learn(self, planned: Plan, drawn: Drawn, seconds: float, *, block_size: int) -> None:
        """Refine the costs and the expected gains by a step that took `seconds`."""
        accepted = [(row, len(decision.path)) for row, decision in drawn]
        learn(planned, accepted, seconds, block_size=block_size, budget=self.budget, wait=self._wait)
